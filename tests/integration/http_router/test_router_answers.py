"""Replicas' answers that are none or break off, and what draining does to them."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from router_harness import (
    Caller,
    Replica,
    Request,
    chunked,
    dies,
    echo,
    echoes_after,
    endpoint,
    post,
    replicas,
    rig,
    silent,
    until,
)


def error_of(body: bytes) -> str:
    return str(json.loads(body)["error"])


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
    async with replicas(Replica(echoes_after(go))) as (replica,), rig() as router:
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
