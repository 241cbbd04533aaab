"""Everything at once through the router's gRPC front: callers that leave, short deadlines, replicas that die, tables that
change. Every call ends, every place is given back, and nothing unforeseen happens inside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc
from grpc_front_harness import SERVICE, Router, endpoint, peer, router

from penstock.core.protobuf import length_prefix
from penstock.fleet.spec import Requests

INFER = "/inference.GRPCInferenceService/ModelInfer"
NAMES = ("m", "n")
EXPECTED = {
    "OK", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "NOT_FOUND", "DATA_LOSS",
}  # fmt: skip


async def call(client: grpc.aio.Channel, dice: random.Random) -> str:
    name = dice.choice(NAMES)
    metadata = (("penstock-endpoint", name),)
    timeout_s = dice.choice([None, 0.001, 0.05, 5.0])
    what = dice.choice(["Echo", "Work", "Fail", "Collect", "Burst", "Early", "Break", "infer", "talk"])
    message = b"20" if what == "Burst" else b"%.3f" % dice.uniform(0, 0.05)
    running: Any
    if what == "infer":
        running = client.unary_unary(INFER)(length_prefix(1, 1) + name.encode(), timeout=timeout_s)
    elif what == "talk":
        running = client.stream_stream(SERVICE + "Echo")(metadata=metadata, timeout=timeout_s)
    else:
        kind = client.unary_stream if what in ("Burst", "Echo") else client.unary_unary
        running = kind(SERVICE + what)(message, metadata=metadata, timeout=timeout_s)
    loop, leaves = asyncio.get_running_loop(), dice.random() < 0.3
    leaver = None
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError, cygrpc.InternalError):
        if what == "talk":
            await running.wait_for_connection()  # for ever, if it were cancelled before
        if leaves:
            leaver = loop.call_later(dice.uniform(0, 0.05), running.cancel)
        if what == "talk":
            for _ in range(dice.randrange(5)):
                # Past `write`, which makes INTERNAL of the status of a call that ends in this moment.
                await running._cython_call.send_serialized_message(b"x")
                await running.read()
            await running._cython_call.send_receive_close()
            while await running.read() is not grpc.aio.EOF:
                pass
        elif hasattr(running, "__aiter__"):
            async for _ in running:
                pass
        else:
            await running
    if leaver is not None:
        leaver.cancel()
    code = await asyncio.wait_for(running.code(), 30)
    return str(code.name) if code is not grpc.StatusCode.INTERNAL else f"INTERNAL {what} {await running.details()}"


async def change(front: Router, dice: random.Random, addresses: list[str]) -> None:
    while True:
        there = [address for address in addresses if dice.random() < 0.7]
        requests = Requests(
            max_in_flight=dice.choice([None, 2]), max_waiting=20, timeout_s=3.0, idempotent=dice.random() < 0.5
        )
        endpoints = [endpoint(name, *there, waking=True, requests=requests) for name in NAMES if dice.random() < 0.9]
        front.follow(*endpoints)
        await asyncio.sleep(dice.uniform(0.01, 0.1))


async def die(port_of: str, dice: random.Random) -> None:
    """A replica at one address that dies and comes back."""
    port = int(port_of.rpartition(":")[2])
    while True:
        async with peer(port):
            await asyncio.sleep(dice.uniform(0.1, 0.3))
        await asyncio.sleep(dice.uniform(0.0, 0.1))


@pytest.mark.parametrize("calls", [600, pytest.param(10_000, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
async def test_every_call_ends_and_every_place_is_given_back(calls: int, caplog: pytest.LogCaptureFixture) -> None:
    dice, strange = random.Random(11), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: strange.append(context))
    async with peer() as one, peer() as other, router(endpoint("m", one.address)) as front:
        async with peer() as mortal:
            mortal_address = mortal.address
        async with grpc.aio.insecure_channel(front.address) as client:
            background = [
                asyncio.ensure_future(change(front, dice, [one.address, other.address, mortal_address])),
                asyncio.ensure_future(die(mortal_address, dice)),
            ]
            outcomes: Counter[str] = Counter()
            left = calls

            async def caller() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    outcomes[await call(client, dice)] += 1

            await asyncio.gather(*(caller() for _ in range(24)))
            assert not any(task.done() for task in background)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            front.follow(endpoint("m", one.address), endpoint("n", other.address))
            assert await client.unary_unary(SERVICE + "Echo")(b"x", metadata=(("penstock-endpoint", "n"),)) == b"x"
            async with asyncio.timeout(10):
                while front.in_flight or any(service.waiting for service in front.balancer.services.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # polled: nothing in there tells
            assert len(front.front._channels) <= 2
    assert sum(outcomes.values()) == calls and outcomes["OK"] > calls / 10
    assert set(outcomes) <= EXPECTED, outcomes
    ours = [record for record in caplog.records if record.name.startswith("penstock")]  # the peers' grpc logs too
    assert [record.getMessage() for record in ours if record.levelno >= logging.ERROR] == []
    assert strange == []
