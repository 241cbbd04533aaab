"""Everything at once: callers that leave, replicas that die, dawdle and lie, tables that change. Nothing may leak, nothing
may hang, and each answer belongs to its question. `Rig.stop` looks for places that were not given back."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from router_harness import Caller, Replica, Request, Rig, chunked, endpoint, post, replicas, rig

from penstock.fleet.router.http_options import HttpOptions
from penstock.fleet.routes import Arm, Endpoint
from penstock.fleet.spec import Requests

CALLERS = 30
ALLOWED = {200, 500, 503, 504}


def temper(source: random.Random, always: bool = False):  # type: ignore[no-untyped-def]
    """A replica's script: mostly an echo, now and then something else."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        mood = source.random()
        if mood < 0.03:
            writer.transport.abort()
            return
        if mood < 0.05:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf")
            await writer.drain()
            writer.transport.abort()
            return
        if mood < 0.07:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nPenstock-Error: Overloaded\r\nContent-Length: 0\r\n\r\n")
            return
        if mood < 0.08:
            writer.write(b"nonsense\r\n\r\n")
            return
        if mood < 0.3:
            await asyncio.sleep(source.random() * 0.02)
        if mood < 0.6:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for place in range(0, len(request.body), 50_000):
            piece = request.body[place : place + 50_000]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return script


async def call(router: Rig, source: random.Random, number: int, counts: dict[int, int]) -> None:
    """One caller's life: some requests on each of some connections."""
    for turn in range(4):
        caller = await router.caller()
        for again in range(source.randrange(1, 8)):
            body = b"%d.%d.%d." % (number, turn, again) * source.choice((1, 10, 1000, 60_000))
            timeout = (f"Penstock-Timeout-Ms: {source.choice((20, 2000))}",)
            data = post(body, *timeout) if source.random() < 0.5 else chunked([body[:100], body[100:]], *timeout)
            caller.send(data)
            if source.random() < 0.1:
                if source.random() < 0.5:
                    await asyncio.sleep(source.random() * 0.02)
                caller.close()
                break
            answer = await caller.answer()
            assert answer.status in ALLOWED
            counts[answer.status] = counts.get(answer.status, 0) + 1
            if answer.status == 200 and answer.complete:
                assert answer.body == body, "an answer to another question"
            if not answer.complete or answer.headers.get("connection") == "close":
                break
        caller.close()


async def churn(router: Rig, given: tuple[Replica, ...], source: random.Random, requests: Requests) -> None:
    """New tables all the time, some without any replica."""
    while True:
        count = source.choice((0, 1, 2, 3))
        some = source.sample(given, count)
        if count == 3:
            arms = (Arm(1, 0.5, (some[0].upstream, some[1].upstream)), Arm(2, 0.5, (some[2].upstream,)))
            router.follow(Endpoint("fraud", arms, 1, requests=requests))
        else:
            router.follow(endpoint(*some, requests=requests, waking=True))
        await asyncio.sleep(source.random() * 0.03)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_storm_leaves_nothing_behind(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(seed)
    requests = Requests(
        idempotent=seed % 2 == 0, hedge_after_s=0.005 if seed == 2 else None, max_in_flight=4, max_waiting=20,
        retry_budget=1.0,
    )  # fmt: skip
    counts: dict[int, int] = {}
    given = tuple(Replica(temper(source), f"r{number}") for number in range(4))
    options = HttpOptions(tick_s=0.05)
    with caplog.at_level(logging.WARNING, "penstock.router"):
        async with replicas(*given), rig(options) as router:
            router.follow(endpoint(*given, requests=requests))
            churning = asyncio.create_task(churn(router, given, source, requests))
            await asyncio.gather(*(call(router, source, number, counts) for number in range(CALLERS)))
            churning.cancel()
            for replica in given:
                replica.script = temper(random.Random(0))
            calm = Replica(lambda request, writer: asyncio.sleep(0, writer.write(b"HTTP/1.1 204 No\r\n\r\n")))
            async with replicas(calm):
                router.follow(endpoint(calm))
                assert (await router.ask(post())).status == 204
        assert counts[200] > 50
        assert not [record for record in caplog.records if record.exc_info], "no defect was logged"


async def test_noise_is_refused_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(7)
    good = [
        post(b"abc"),
        chunked([b"ab", b"c"]),
        post(b"", "Expect: 100-continue"),
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    ]

    async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def noise() -> bytes:
        data = bytearray(b"".join(source.choices(good, k=3)))
        for _ in range(source.randrange(1, 6)):
            place = source.randrange(len(data))
            kind = source.random()
            if kind < 0.4:
                data[place] = source.randrange(256)
            elif kind < 0.7:
                del data[place : place + source.randrange(1, 9)]
            else:
                data[place:place] = source.choice(
                    (b"\r\n", b"\n", b"\0", b":", b" ", b"0\r\n\r\n", b"Content-Length: 5\r\n")
                )
        return bytes(data)

    async def send(router: Rig, data: bytes) -> None:
        caller: Caller = await router.caller()
        caller.send(data)
        caller.writer.write_eof()
        await caller.ended()
        caller.close()

    with caplog.at_level(logging.WARNING, "penstock.router"):
        async with replicas(Replica(echo)) as (replica,), rig(HttpOptions(tick_s=0.05)) as router:
            router.follow(endpoint(replica))
            for _ in range(20):
                await asyncio.gather(*(send(router, noise()) for _ in range(20)))
            assert (await router.ask(post(b"abc"))).body == b"ok"
            assert router.front.refused
            assert all(request.line.split(" ")[2] == "HTTP/1.1" for request in replica.seen)
    assert not [record for record in caplog.records if record.exc_info], "no defect was logged"
