"""Callers of the router that leave, dawdle, send too much or read too slowly."""

from __future__ import annotations

import asyncio
import hashlib

from router_harness import (
    Replica,
    Request,
    chunked,
    echo,
    echoes_after,
    endpoint,
    post,
    replicas,
    rig,
    says,
    silent,
    until,
)

from penstock.fleet.router.http_options import HttpOptions
from penstock.fleet.routes import Tenant


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
    async with replicas(Replica(echoes_after(go))) as (replica,), rig() as router:
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
