"""Both clients against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from v2_peer import Script, Scripted, V2Server, answer, hang_up, ok_result, raw, silent

from penstock.client import AsyncClient, Client
from penstock.core import errors

X = {"x": np.zeros(1, np.float32)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (400, (), errors.InvalidInput),
        (401, (), errors.Unauthenticated),
        (403, (), errors.PermissionDenied),
        (404, (), errors.NotFound),
        (409, (), errors.AlreadyExists),
        (413, (), errors.TooLarge),
        (418, (), errors.InvalidInput),
        (422, (), errors.InvalidInput),
        (429, (), errors.QuotaExceeded),
        (500, (), errors.Internal),
        (500, ("Penstock-Error: ServableError",), errors.ServableError),
        (501, (), errors.Unsupported),
        (503, (), errors.Overloaded),
        (503, ("Penstock-Error: NotReady",), errors.NotReady),
        (503, ("Penstock-Error: Nonsense",), errors.Internal),
        (504, (), errors.DeadlineExceeded),
        (302, (), errors.Internal),
    ],
)
def test_an_error_has_the_type_that_the_server_meant(
    connect: Any, status: int, headers: tuple[str, ...], kind: type[errors.PenstockError]
) -> None:
    with Scripted(answer(status, b'{"error": "because"}', *headers)) as server:
        with pytest.raises(errors.PenstockError, match="because") as caught:
            connect(server.url).call("infer", "m", X)
        assert type(caught.value) is kind
        assert len(server.seen) == 1


@pytest.mark.parametrize("body", [b"", b"<html>gateway</html>", b'{"detail": [{"loc": 1}]}', b"[1]", b"\xff\xfe"])
def test_an_error_without_the_protocols_form_is_still_one(connect: Any, body: bytes) -> None:
    with Scripted(answer(502, body)) as server, pytest.raises(errors.NotReady) as caught:
        connect(server.url).call("infer", "m", X)
    assert str(caught.value)


def test_a_refusal_with_a_time_to_return_is_tried_again(connect: Any) -> None:
    refusal = answer(503, b'{"error": "full"}', "Retry-After: 0.05", "Connection: close")
    with Scripted(refusal, refusal, ok_result()) as server:
        before = time.monotonic()
        result = connect(server.url).call("infer", "m", X)
        assert result["y"].tolist() == [7.0]
        assert len(server.seen) == 3
        assert time.monotonic() - before > 0.1


def test_tries_end_with_the_last_error(connect: Any) -> None:
    with Scripted(answer(503, b'{"error": "full"}', "Retry-After: 0.01")) as server:
        with pytest.raises(errors.Overloaded) as caught:
            connect(server.url, retries=1).call("infer", "m", X)
        assert caught.value.retry_after_s == 0.01
        assert len(server.seen) == 2


def test_a_wait_that_would_outlast_the_deadline_is_not_begun(connect: Any) -> None:
    with Scripted(answer(429, b'{"error": "quota"}', "Retry-After: 30")) as server:
        before = time.monotonic()
        with pytest.raises(errors.QuotaExceeded) as caught:
            connect(server.url).call("infer", "m", X, timeout_s=5.0)
        assert time.monotonic() - before < 2
        assert caught.value.retry_after_s == 30
        assert len(server.seen) == 1


def test_a_lost_worker_is_not_asked_again(connect: Any) -> None:
    headers = ("Penstock-Error: WorkerLost", "Retry-After: 0.01")
    with Scripted(answer(503, b'{"error": "died"}', *headers)) as server:
        with pytest.raises(errors.WorkerLost):
            connect(server.url).call("infer", "m", X)
        assert len(server.seen) == 1


def test_a_server_that_comes_up_late_is_found(connect: Any) -> None:
    port = free_port()
    started: list[Scripted] = []

    def start() -> None:
        listener = socket.create_server(("127.0.0.1", port))
        server = Scripted(ok_result())
        server.listener.close()
        server.listener = listener
        threading.Thread(target=server._accept, daemon=True).start()
        started.append(server)

    timer = threading.Timer(0.15, start)
    timer.start()
    try:
        assert connect(f"http://127.0.0.1:{port}", retries=8).call("infer", "m", X)["y"].tolist() == [7.0]
    finally:
        timer.join()
        started[0].listener.close()


def test_a_server_that_is_not_there_is_not_ready(connect: Any) -> None:
    with pytest.raises(errors.NotReady, match=r"cannot connect to 127\.0\.0\.1"):
        connect(f"http://127.0.0.1:{free_port()}", retries=1).call("live")
    with pytest.raises(errors.NotReady, match=r"cannot connect to no\.such\.invalid"):
        connect("http://no.such.invalid", retries=0).call("live")


def test_a_connection_that_breaks_loses_an_inference_once_and_never_repeats_it(connect: Any) -> None:
    with Scripted(hang_up) as server:
        with pytest.raises(errors.WorkerLost, match=r"the answer was there$"):
            connect(server.url).call("infer", "m", X)
        assert len(server.seen) == 1


@pytest.mark.parametrize("cut", [1, 30, 80])
def test_half_an_answer_is_none(connect: Any, cut: int) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nInference-Header-Content-Length: 100\r\n\r\n" + b"{" * 99
    with Scripted(raw(whole[:cut])) as server, pytest.raises(errors.WorkerLost):
        connect(server.url).call("infer", "m", X)


def test_a_kept_connection_that_the_server_closed_is_replaced(connect: Any) -> None:
    answered = threading.Semaphore(0)

    def once(peer: socket.socket, data: bytes) -> None:
        ok_result()(peer, data)
        answered.acquire(timeout=10)
        peer.shutdown(socket.SHUT_RDWR)

    with Scripted(once) as server:
        client = connect(server.url)
        for number in range(3):
            assert client.call("infer", "m", X)["y"].tolist() == [7.0]
            answered.release()
            server._threads[number].join(10)  # now it is closed
        assert len(server.seen) == 3


def test_only_what_may_be_repeated_is_when_a_kept_connection_ends_on_the_way(connect: Any) -> None:
    def first_then_hang_up() -> Script:
        calls: list[bytes] = []

        def script(peer: socket.socket, data: bytes) -> None:
            calls.append(data)
            (answer(200, b'{"name": "s"}') if len(calls) == 1 else hang_up)(peer, data)

        return script

    with Scripted(first_then_hang_up(), answer(200, b'{"name": "s"}')) as server:
        client = connect(server.url)
        assert client.call("server") == client.call("server") == {"name": "s"}
        assert len(server.seen) == 3
    with Scripted(first_then_hang_up(), ok_result()) as server:
        client = connect(server.url)
        client.call("server")
        with pytest.raises(errors.WorkerLost):
            client.call("infer", "m", X)
        assert len(server.seen) == 2


def test_a_silent_server_costs_the_deadline_and_no_more(connect: Any) -> None:
    with Scripted(silent) as server:
        before = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            connect(server.url, timeout_s=0.2).call("infer", "m", X)
        assert 0.15 < time.monotonic() - before < 2
        assert server.gone.wait(5), "the connection is closed, so that the server may stop"


def test_a_server_that_drips_cannot_stretch_the_deadline(connect: Any) -> None:
    stop = threading.Event()

    def drip(peer: socket.socket, _: bytes) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not stop.wait(0.02):
            peer.sendall(b"x")

    with Scripted(drip) as server:
        before = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            connect(server.url, timeout_s=0.3).call("infer", "m", X)
        assert time.monotonic() - before < 2
        stop.set()


def test_a_stream_that_stops_talking_ends_at_the_clients_patience(connect: Any) -> None:
    def two_then_nothing(peer: socket.socket, _: bytes) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        peer.sendall(b'data: {"n": 1}\n\ndata: {"n": 2}\n\n')

    with Scripted(two_then_nothing) as server:
        with pytest.raises(errors.DeadlineExceeded):
            connect(server.url, timeout_s=0.2).listed("m", {"x": 1})
        assert server.gone.wait(5)


def test_a_stream_cut_in_the_middle_is_an_error_not_an_end(connect: Any) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Scripted(raw(cut + b'10\r\ndata: {"n": 1}\n\n\r\n')) as server, pytest.raises(errors.WorkerLost):
        connect(server.url).listed("m", {"x": 1})


def test_an_error_instead_of_a_stream_is_raised(connect: Any) -> None:
    with Scripted(answer(404, b'{"error": "unknown model"}')) as server, pytest.raises(errors.NotFound):
        connect(server.url).listed("m", {"x": 1})


def test_a_body_refused_early_gives_the_reason(connect: Any) -> None:
    def refuse(peer: socket.socket) -> None:
        peer.recv(1000)
        peer.sendall(b'HTTP/1.1 413 No\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{"error": "large"}')
        with contextlib.suppress(OSError):  # the client may be gone
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(1 << 20):  # as a well-behaved server does: a reset would destroy the answer
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                refuse(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.TooLarge, match="large"):
            connect(url, timeout_s=10.0).call("infer", "m", {"x": np.zeros(4_000_000)})
        thread.join(10)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Encoding: br\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Encoding: gzip\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nInference-Header-Content-Length: 9\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\n\r\n{"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1], "data": [1]}]}',
        b'HTTP/1.1 200 OK\r\n\r\n{"outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [1]}]}',
        b'HTTP/1.1 200 OK\r\n\r\n{"outputs": 5}',
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
)
def test_nonsense_from_a_server_is_one_clear_error(connect: Any, data: bytes) -> None:
    with Scripted(raw(data)) as server, pytest.raises(errors.Internal, match="server"):
        connect(server.url, timeout_s=5.0).call("infer", "m", X)


@pytest.mark.parametrize("length", [b"Content-Length: 3000000000000", b"Transfer-Encoding: chunked"])
def test_an_endless_answer_does_not_fill_the_memory(connect: Any, length: bytes) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n" + b"fffffffffff\r\n" + b"x" * 1000
    with Scripted(raw(data)) as server, pytest.raises((errors.TooLarge, errors.WorkerLost)):
        connect(server.url, timeout_s=5.0).call("infer", "m", X)


def test_interim_answers_are_passed_over(connect: Any) -> None:
    data = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"name": "s"}'
    )
    with Scripted(raw(data)) as server:
        assert connect(server.url).call("server") == {"name": "s"}


def test_an_unasked_answer_is_not_taken_for_the_next_one(connect: Any) -> None:
    one = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{"name": "%s"}'

    def chatty(peer: socket.socket, _: bytes) -> None:
        forged = one % (18, b"forged") if len(server.seen) == 1 else b""
        peer.sendall(one % (13, b"s") + forged)

    with Scripted(chatty) as server:
        client = connect(server.url)
        assert [client.call("server")["name"] for _ in range(3)] == ["s", "s", "s"]


async def test_a_cancelled_task_closes_its_connection_and_leaves_the_client_usable() -> None:
    with Scripted(silent, ok_result()) as server:
        async with AsyncClient(server.url) as client:
            task = asyncio.ensure_future(client.infer("m", X))
            while not server.seen:  # noqa: ASYNC110 - the other side is a thread
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.gone.wait, 5)
            assert (await client.infer("m", X))["y"].tolist() == [7.0]


async def test_tasks_share_a_client_and_get_their_own_answers(peer: V2Server) -> None:
    async with AsyncClient(peer.url) as client:

        async def work(number: int) -> bool:
            sent = np.full(number * 5000 + 1, number)
            return all([np.array_equal((await client.infer("echo", {"x": sent}))["x"], sent) for _ in range(8)])

        assert all(await asyncio.gather(*(work(number) for number in range(12))))
    assert peer.connections <= 12


def test_an_asyncio_client_lives_through_several_loops(peer: V2Server) -> None:
    client = AsyncClient(peer.url)
    for _ in range(2):
        assert asyncio.run(client.infer("echo", X))["x"].tolist() == [0.0]


def test_a_forked_child_does_not_use_its_parents_connections(peer: V2Server) -> None:
    with Client(peer.url) as client:
        client.infer("echo", X)
        child = multiprocessing.get_context("fork").Process(target=client.infer, args=("echo", X))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        client.infer("echo", X)
    assert peer.connections == 2
