"""The router's HTTP front between raw callers and scripted replicas: what goes through, and how."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from pathlib import Path

import pytest
from router_harness import (
    Caller,
    Replica,
    Request,
    chunked,
    dies,
    echo,
    endpoint,
    post,
    replicas,
    rig,
    says,
    silent,
    until,
)

from penstock.fleet.router.http_options import HttpOptions
from penstock.fleet.router.recorder import Recorder
from penstock.fleet.routes import Arm, Endpoint, Tenant
from penstock.fleet.spec import Requests
from penstock.fleet.store.decisions import Decisions


def error_of(body: bytes) -> str:
    return str(json.loads(body)["error"])


async def test_a_request_and_its_answer_go_through() -> None:
    async with replicas(Replica(says(b"[1]", headers="X-Model: a\r\n"))) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        answer = await router.ask(
            post(
                b"\x00\xff{}", "X-Own: v\xe4lue", "Connection: X-Hop", "X-Hop: 1", "TE: trailers", "Keep-Alive: 5",
                "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", path="/predict/fraud?x=%20y&z",
            )
        )  # fmt: skip
        assert (answer.status, answer.body) == (200, b"[1]")
        assert answer.headers["penstock-revision"] == "1" and answer.headers["x-model"] == "a"
        (request,) = replica.seen
        assert request.line == "POST /predict/fraud?x=%20y&z HTTP/1.1"
        assert request.body == b"\x00\xff{}"
        assert request.headers["x-own"] == "v\xe4lue" and request.headers["host"] == "here"
        assert request.headers["traceparent"].endswith("b7ad6b7169203331-01")
        assert not {"connection", "x-hop", "te", "keep-alive"} & set(request.headers)
        assert 59_000 < int(request.headers["penstock-timeout-ms"]) <= 60_000


async def test_connections_are_kept_on_both_sides() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for number in range(20):
            caller.send(post(b"%d" % number))
            assert (await caller.answer()).body == b"%d" % number
        assert replica.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body == b"0":
            await asyncio.sleep(0.05)
        await echo(request, writer)

    async with replicas(Replica(slow_first)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(b"".join(post(b"%d" % number) for number in range(50)))
        assert [(await caller.answer()).body for _ in range(50)] == [b"%d" % number for number in range(50)]


async def test_a_request_in_single_bytes_is_read() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for data in (post(b"abc"), chunked([b"de", b"f"])):
            for place in range(len(data)):
                caller.send(data[place : place + 1])
                await asyncio.sleep(0)
        assert [(await caller.answer()).body for _ in range(2)] == [b"abc", b"def"]


async def test_a_small_chunked_body_gets_a_length_and_a_large_one_streams() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        assert (await router.ask(chunked([b"ab", b"c"]))).body == b"abc"
        assert replica.seen[0].headers["content-length"] == "3"
        pieces = [bytes([number]) * 100_000 for number in range(10)]
        answer = await router.ask(chunked(pieces))
        assert answer.body == b"".join(pieces)
        assert replica.seen[1].headers["transfer-encoding"] == "chunked"
        assert (await router.ask(post(b"x" * 1_000_000))).body == b"x" * 1_000_000
        assert replica.seen[2].headers["content-length"] == "1000000"


async def test_an_answer_in_chunks_arrives_piece_by_piece() -> None:
    more = asyncio.Event()

    async def stream(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"9;ext=1\r\ndata: 1\n\n\r\n"
        )
        await more.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\nTrailer: x\r\n\r\n")

    async with replicas(Replica(stream)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        async with asyncio.timeout(5):
            first = await caller.reader.readuntil(b"data: 1\n\n\r\n")
        assert b"penstock-revision: 1" in first and b"text/event-stream" in first
        more.set()
        async with asyncio.timeout(5):
            assert await caller.reader.readuntil(b"0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        caller.send(post())
        assert (await caller.answer()).body == b"data: 1\n\ndata: 2\n\n"
        assert replica.connections == 1, "the connection was used again"


async def test_an_answer_until_the_connections_end_gets_chunks() -> None:
    async def until_end(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await writer.drain()
        writer.close()

    async with replicas(Replica(until_end)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for _ in range(2):
            caller.send(post())
            answer = await caller.answer()
            assert answer.body == b"abc" and answer.complete
        assert replica.connections == 2


async def test_heads_and_answers_without_bodies() -> None:
    async with replicas(Replica(says(b"", "304 Not Modified"))) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        assert (await caller.answer()).status == 304

        async def long(request: Request, writer: asyncio.StreamWriter) -> None:
            body = b"" if request.line.startswith("HEAD") else b"x" * 100
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + body)

        replica.script = long
        caller.send(b"HEAD /v2/models/fraud HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await caller.answer(head_only=True)
        assert head.headers["content-length"] == "100"
        caller.send(post())
        assert len((await caller.answer()).body) == 100


async def test_callers_of_http_1_0() -> None:
    async def stream(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        old = b"POST /v2/models/fraud/infer HTTP/1.0\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx"
        caller.send(old)
        answer = await caller.answer()
        assert answer.body == b"x" and answer.headers["connection"] == "keep-alive"
        replica.script = stream
        caller.send(old)
        answer = await caller.answer()
        assert answer.body == b"abc" and answer.headers["connection"] == "close"


async def test_who_waits_with_the_body_is_told_to_go_on() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        head, body = post(b"abc", "Expect: 100-continue").split(b"\r\n\r\n")
        caller.send(head + b"\r\n\r\n")
        async with asyncio.timeout(5):
            assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.send(body)
        assert (await caller.answer()).body == b"abc"
        assert "expect" not in replica.seen[0].headers
        refused = await router.ask(post(b"abc", "Expect: 100-continue", path="/v2/models/other/infer").split(b"abc")[0])
        assert refused.status == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/other/infer", 404),
        ("/v2/repository/models/fraud/load", 404),
        ("/", 404),
        ("/v2/models/fraud/../x", 404),
    ],
)
async def test_what_is_nobodys_is_answered_here(path: str, status: int) -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post(b"abc", path=path) + post(b"next"))
        answer = await caller.answer()
        assert answer.status == status and answer.headers["penstock-error"] == "NotFound"
        assert (await caller.answer()).body == b"next", "its body was read, and the connection goes on"
        assert len(replica.seen) == 1


async def test_before_the_first_table_callers_are_told_to_come_again() -> None:
    async with rig() as router:
        answer = await router.ask(post())
        assert answer.status == 503 and answer.headers["penstock-error"] == "NotReady"
        assert answer.headers["retry-after"] == "1"
        ready = await router.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        assert ready.status == 503


async def test_weights_are_kept_and_named() -> None:
    async with replicas(Replica(says(b"one"), "a"), Replica(says(b"two"), "b")) as (one, two), rig() as router:
        router.follow(Endpoint("fraud", (Arm(3, 0.8, (one.upstream,)), Arm(4, 0.2, (two.upstream,))), 3))
        caller = await router.caller()
        counts = {"3": 0, "4": 0}
        for _ in range(1000):
            caller.send(post())
            answer = await caller.answer()
            assert answer.body == {"3": b"one", "4": b"two"}[answer.headers["penstock-revision"]]
            counts[answer.headers["penstock-revision"]] += 1
        assert 140 < counts["4"] < 260


async def test_the_deadline_is_answered_and_the_replica_told() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        began = asyncio.get_running_loop().time()
        answer = await router.ask(post(b"{}", "Penstock-Timeout-Ms: 100"))
        took = asyncio.get_running_loop().time() - began
        assert answer.status == 504 and answer.headers["penstock-error"] == "DeadlineExceeded"
        assert 0.1 <= took < 1.0
        assert int(replica.seen[0].headers["penstock-timeout-ms"]) <= 100
        await until(lambda: replica.open == 0, "the connection to the replica is closed")


async def test_the_deployments_own_deadline_holds_for_callers_without_one() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica, requests=Requests(timeout_s=0.05)))
        assert (await router.ask(post())).status == 504


async def test_a_stream_past_its_deadline_is_cut() -> None:
    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await request.reader.read()

    async with replicas(Replica(endless)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        answer = await router.ask(post(b"{}", "Penstock-Timeout-Ms: 100"))
        assert answer.status == 200 and not answer.complete


async def test_a_caller_that_leaves_ends_the_work() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        for half in (False, True):
            caller = await router.caller()
            caller.send(post())
            await until(lambda: replica.open == 1)
            if half:
                caller.writer.write_eof()  # a FIN first, as a process that ends sends it, then a closed socket
                await asyncio.sleep(0.02)
                assert replica.open == 1, "a caller that has only finished sending gets its answer"
            caller.close()
            await until(lambda: replica.open == 0, "the replica learns that nobody waits")
        assert router.front.abandoned == 2


async def test_a_caller_that_finished_sending_gets_its_answer() -> None:
    go = asyncio.Event()

    async def later(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await echo(request, writer)

    async with replicas(Replica(later)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post(b"abc"))
        caller.writer.write_eof()
        await until(lambda: len(replica.seen) == 1)
        await asyncio.sleep(0.05)
        go.set()
        assert (await caller.answer()).body == b"abc"
        assert await caller.ended() == b""


async def test_a_caller_that_finished_sending_gets_all_its_answers() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        live = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
        caller.send(post(b"one") + post(b"two") + live + post(b"three") + post(b"four")[:-1])
        caller.writer.write_eof()
        said = await caller.ended()
        assert [said.count(body) for body in (b"one", b"two", b"live", b"three", b"four")] == [1, 1, 1, 1, 0]
        assert said.index(b"one") < said.index(b"two") < said.index(b"live") < said.index(b"three")


async def test_requests_that_are_refused_before_their_body_keep_nothing() -> None:
    async with rig() as router:
        router.follow()
        data = post(b"x" * 300_000, path="/v2/models/none/infer")

        errors = []
        for _ in range(3):
            assert (await router.ask(data)).status == 404
            errors.append(router.front.plan(router.front.heads.read(data[: data.index(b"\r\n\r\n") + 4])).error)
        assert errors[0] is errors[2] is not None, "it is kept with the head"
        assert errors[0].__traceback__ is None, "it would hold each connection with what was read from it"


async def test_strangers_are_refused_before_their_bodies() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica), tenants=(Tenant("gold", hashlib.sha256(b"gold").hexdigest()),))
        for path in ("/v2/models/fraud/infer", "/v2/models/none/infer", "/v2/models/fraud/feedback"):
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n"
            assert (await router.ask(f"{head}\r\n".encode())).status == 401
            caller = await router.caller()
            caller.send(f"{head}X-API-Key: gold\r\n\r\n".encode())
            said = await caller.reader.readuntil(b"\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 404" if "none" in path else b"HTTP/1.1 100")


async def test_limits_on_what_a_caller_sends() -> None:
    options = HttpOptions(max_body_bytes=500_000, max_header_bytes=2000, max_headers=10)
    async with replicas(Replica(echo)) as (replica,), rig(options) as router:
        router.follow(endpoint(replica))
        answer = await router.ask(b"POST /v2/models/fraud/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 500001\r\n\r\n")
        assert answer.status == 413 and answer.headers["penstock-error"] == "TooLarge"
        assert (await router.ask(chunked([b"x" * 100_000] * 6))).status == 413
        assert (await router.ask(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 3000)).status == 431
        assert (await router.ask(post(b"", *[f"X-{number}: 1" for number in range(10)]))).status == 431
        assert (await router.ask(post(b"x" * 500_000))).status == 200


async def test_too_many_connections_are_told_so() -> None:
    async with rig(HttpOptions(max_connections=2)) as router:
        router.follow()
        kept = [await router.caller() for _ in range(2)]
        await until(lambda: router.front.connections_open == 2)
        more = await router.caller()
        answer = await more.answer()
        assert answer.status == 503 and answer.headers["penstock-error"] == "Overloaded"
        for caller in kept:
            caller.send(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await caller.answer()).status == 200


async def test_callers_that_dawdle_are_let_go() -> None:
    options = HttpOptions(header_timeout_s=0.1, body_timeout_s=0.1, keep_alive_s=0.1, tick_s=0.02)
    async with replicas(Replica(echo)) as (replica,), rig(options) as router:
        router.follow(endpoint(replica))
        idle, head, body = [await router.caller() for _ in range(3)]
        head.send(b"POST /v2/mod")
        body.send(post(b"abc")[:-1])
        assert (await head.answer()).status == 408
        assert (await body.answer()).status == 408
        assert await idle.ended() == b""


async def test_the_next_requests_of_a_busy_connection_are_not_read_for_ever() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        await until(lambda: len(replica.seen) == 1)
        sent = 0
        flood = post(b"x" * 10_000)
        try:
            async with asyncio.timeout(0.5):
                while sent < 64 << 20:
                    caller.send(flood)
                    await caller.writer.drain()
                    sent += len(flood)
        except TimeoutError:
            pass
        assert sent < 32 << 20, "what is not read stays with its sender"


async def test_a_slow_reader_holds_back_the_replica() -> None:
    size = 64 << 20
    written = 0

    async def huge(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // (1 << 20)):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            written += 1 << 20

    async with replicas(Replica(huge)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        await until(lambda: written > 0)
        last = -1
        while last != written:
            last = written
            await asyncio.sleep(0.1)
        assert written < size / 2
        assert len((await caller.answer()).body) == size


async def test_a_connection_with_half_a_request_is_not_used_again() -> None:
    async with replicas(Replica(says(b"early"), read_bodies=False)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post(b"").replace(b"Content-Length: 0", b"Content-Length: 10000000") + b"x" * 400_000)
        assert (await caller.answer()).body == b"early"
        replica.read_bodies = True
        assert (await router.ask(post(b"abc"))).body == b"early"
        assert replica.connections == 2 and replica.seen[-1].body == b"abc"


async def test_a_slow_replica_holds_back_the_upload() -> None:
    go = asyncio.Event()

    async def later(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        size, reader = int(request.headers["content-length"]), request.reader
        got = 0
        while got < size:
            got += len(await reader.read(1 << 20))
        await says(b"%d" % got)(request, writer)

    async with replicas(Replica(later, read_bodies=False)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        size, sent = 64 << 20, 0
        head = post(b"").replace(b"Content-Length: 0", b"Content-Length: %d" % size)
        caller.send(head)

        async def upload() -> None:
            nonlocal sent
            while sent < size:
                caller.send(b"x" * (1 << 20))
                await caller.writer.drain()
                sent += 1 << 20

        uploading = asyncio.create_task(upload())
        last = -1
        while last != sent or not sent:
            last = sent
            await asyncio.sleep(0.1)
        assert sent < size / 2
        go.set()
        assert (await caller.answer()).body == b"%d" % size
        await uploading


async def test_an_answer_before_the_upload_ended_reaches_the_caller() -> None:
    async def refuses(request: Request, writer: asyncio.StreamWriter) -> None:
        await says(b'{"error":"no"}', "413 Content Too Large", "Connection: close\r\n")(request, writer)

    async with replicas(Replica(refuses, read_bodies=False)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post(b"").replace(b"Content-Length: 0", b"Content-Length: 10000000") + b"x" * 400_000)
        answer = await caller.answer()
        assert answer.status == 413 and answer.headers["connection"] == "close"
        assert await caller.ended() == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"no http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
async def test_an_answer_that_is_none_becomes_an_error(answer: bytes) -> None:
    async def odd(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await request.reader.read()

    async with replicas(Replica(odd)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        got = await router.ask(post())
        assert got.status == 500 and got.headers["penstock-error"] == "Internal"
        assert "malformed" in error_of(got.body)


async def test_any_number_of_answers_that_are_none_yet_come_before_one() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 102 Wait\r\n\r\n" * 5000 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with replicas(Replica(script)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        assert [(await router.ask(post())).body for _ in range(2)] == [b"ok", b"ok"]


async def test_bytes_after_an_answer_never_become_the_next_one() -> None:
    async def chatty(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with replicas(Replica(chatty)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        for _ in range(3):
            caller.send(post())
            assert (await caller.answer()).body == b"ok"
        assert replica.connections == 3


async def test_draining_answers_what_is_on_its_way_and_then_ends() -> None:
    go = asyncio.Event()

    async def later(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await echo(request, writer)

    async with replicas(Replica(later)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        busy, idle = await router.caller(), await router.caller()
        busy.send(post(b"abc"))
        await until(lambda: len(replica.seen) == 1)
        draining = asyncio.create_task(router.front.drain(10.0))
        assert await idle.ended() == b""
        assert not draining.done()
        go.set()
        answer = await busy.answer()
        assert answer.body == b"abc" and answer.headers["connection"] == "close"
        assert await draining == 0
        with pytest.raises(OSError):
            await router.caller()


async def test_draining_serves_callers_that_were_connected_and_not_accepted() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        blocked = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(5)]  # in one turn of the loop
        for number, each in enumerate(blocked):
            each.sendall(post(b"%d" % number))
        assert router.front.connections_open == 0
        draining = asyncio.create_task(router.front.drain(5.0))
        for number, each in enumerate(blocked):
            caller = Caller(*await asyncio.open_connection(sock=each))
            assert (await caller.answer()).body == b"%d" % number
            caller.close()
        assert await draining == 0


async def test_a_body_that_is_not_there_by_the_deadline() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        began = asyncio.get_running_loop().time()
        caller.send(post(b"abc", "Penstock-Timeout-Ms: 100")[:-1])
        answer = await caller.answer()
        assert answer.status == 504 and answer.headers["penstock-error"] == "DeadlineExceeded"
        assert 0.1 <= asyncio.get_running_loop().time() - began < 0.5
        assert not replica.seen

        caller = await router.caller()
        caller.send(chunked([b"x" * 300_000] * 2))
        assert (await caller.answer()).status == 200, "a long answer, and then"
        caller.send(post(b"abc", "Penstock-Timeout-Ms: 100")[:-1])
        assert (await caller.answer()).status == 504


async def test_draining_cuts_what_takes_longer_than_its_grace() -> None:
    async with replicas(Replica(silent)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        caller.send(post())
        await until(lambda: len(replica.seen) == 1)
        assert await router.front.drain(0.05) == 1
        assert await caller.ended() == b""


async def test_a_replica_that_dies_within_an_answer_cuts_the_caller() -> None:
    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.02)
        await dies(request, writer)

    async with replicas(Replica(half)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        answer = await router.ask(post())
        assert answer.status == 200 and not answer.complete and answer.body == b"half"

        async def half_of_unknown(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            await writer.drain()
            await dies(request, writer)

        replica.script = half_of_unknown
        caller = await router.caller()
        caller.send(b"POST /v2/models/fraud/infer HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ConnectionError):  # FIN would make the half look whole
            await caller.reader.read()


async def test_metrics_and_probes() -> None:
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica), Endpoint("sleeps", (), 1, waking=True))
        await router.ask(post())
        text = (await router.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).body.decode()
        assert 'penstock_router_requests_total{deployment="fraud",revision="1",status="2xx"} 1\n' in text
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/sleeps/ready"):
            assert (await router.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())).status == 200
        assert json.loads((await router.ask(b"GET /v2/models HTTP/1.1\r\nHost: a\r\n\r\n")).body) == {
            "models": ["fraud", "sleeps"]
        }
        assert json.loads((await router.ask(post(path="/v2/repository/index"))).body) == [
            {"name": "fraud", "version": "", "state": "READY", "reason": ""},
            {"name": "sleeps", "version": "", "state": "READY", "reason": ""},
        ]
        assert json.loads((await router.ask(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")).body)["version"]
        assert (await router.ask(post(path="/metrics"))).status == 501


async def test_every_metric_is_in_the_documents_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    told = set(re.findall(r"^\| `(penstock_router_\w+)`", page, re.MULTILINE))
    async with replicas(Replica(echo)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        router.hooks.recorder = Recorder(lambda: Decisions("sqlite://"), "test")
        text = (await router.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).body.decode()
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) == told
