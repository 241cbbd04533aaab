"""Replicas behind the router's gRPC front that are refused, away, full or gone."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_front_calls import INFER, NAMED, channel, eventually, fails, infer_request
from grpc_front_harness import SERVICE, endpoint, peer, router

from penstock.fleet.router import grpc_channels
from penstock.fleet.spec import Requests


async def test_a_connection_refused_is_another_replicas_call() -> None:
    async with peer() as gone:
        pass
    async with (
        peer() as replica,
        router(endpoint("m", gone.address, replica.address)) as front,
        channel(front.address) as client,
    ):
        for method, message in ((SERVICE + "Echo", b"x"), (INFER, infer_request("m"))) * 10:
            assert await client.unary_unary(method)(message, metadata=NAMED) == message
        assert replica.calls == 20
        assert front.balancer.failing == {f"m-{gone.address}"}


async def test_calls_wait_for_a_replica_that_starts() -> None:
    async with router(endpoint("m", waking=True)) as front, channel(front.address) as client, peer() as replica:
        calls = [client.unary_unary(INFER)(infer_request("m"), timeout=20) for _ in range(20)]
        calls += [
            client.unary_unary(SERVICE + "Echo")(infer_request("m"), timeout=20, metadata=NAMED) for _ in range(20)
        ]
        waiting = [asyncio.ensure_future(call.wait_for_connection()) for call in calls]
        await eventually(lambda: front.balancer.services["m"].waiting == 40)
        late = await fails(client.unary_unary(INFER)(infer_request("m"), timeout=0.2))
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: front.balancer.services["m"].waiting == 40)
        front.follow(endpoint("m", replica.address))
        assert await asyncio.gather(*calls) == [infer_request("m")] * 40
        await asyncio.gather(*waiting)


async def test_nothing_to_wait_for_is_unavailable_at_once_with_when_to_come_back() -> None:
    full = Requests(max_in_flight=1, max_waiting=0)
    async with (
        peer() as replica,
        router(endpoint("none"), endpoint("m", replica.address, requests=full)) as front,
        channel(front.address) as client,
    ):
        error = await fails(client.unary_unary(INFER)(infer_request("none")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and "retry-after" in dict(error.trailing_metadata())
        sleeping = client.unary_unary(SERVICE + "Sleep")(b"", metadata=NAMED)
        held = asyncio.ensure_future(sleeping.wait_for_connection())
        await asyncio.wait_for(replica.started.wait(), 10)
        error = await fails(client.unary_unary(INFER)(infer_request("m")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and "retry-after" in dict(error.trailing_metadata())
        sleeping.cancel()
        await asyncio.gather(held, return_exceptions=True)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_unavailable_is_asked_again_only_where_that_does_no_harm(idempotent: bool) -> None:
    requests = Requests(idempotent=idempotent)
    async with (
        peer() as one,
        peer() as other,
        router(endpoint("m", one.address, other.address, requests=requests)) as front,
        channel(front.address) as client,
    ):
        run = one._run
        one._run = lambda what, context: run("Fail", context)  # type: ignore[method-assign]
        codes = []
        for _ in range(40):
            try:
                await client.unary_unary(INFER)(infer_request("m"))
                codes.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
        if idempotent:  # as far as the budget goes: three in ten seconds
            assert one.calls >= 3 and codes[:3] == [grpc.StatusCode.OK] * 3
        else:
            assert one.calls + other.calls == 40 and codes.count(grpc.StatusCode.UNAVAILABLE) == one.calls


@pytest.mark.parametrize(("error", "again"), [("Overloaded", True), ("NotReady", True), ("WorkerLost", False)])
async def test_what_a_replica_refused_is_another_ones_call_and_what_it_lost_is_not(error: str, again: bool) -> None:
    async with (
        peer() as one,
        peer() as other,
        router(endpoint("m", one.address, other.address, requests=Requests(retry_budget=1.0))) as front,
        channel(front.address) as client,
    ):

        async def refuse(what: str, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "socket closed", (("penstock-error", error),))

        one._run = refuse  # type: ignore[method-assign]
        outcomes = await asyncio.gather(
            *(client.unary_unary(INFER)(infer_request("m")) for _ in range(30)), return_exceptions=True
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert one.calls > 0 and len(failed) == (0 if again else one.calls)
        assert not front.balancer.failing


async def test_a_replica_that_left_the_table_ends_its_calls_first() -> None:
    async with (
        peer() as old,
        peer() as new,
        router(endpoint("m", old.address)) as front,
        channel(front.address) as client,
    ):
        talk = client.stream_stream(SERVICE + "Echo")(metadata=NAMED)
        await talk.write(b"1")
        assert await talk.read() == b"1"
        front.follow(endpoint("m", new.address))
        assert await client.unary_unary(SERVICE + "Echo")(b"x", metadata=NAMED) == b"x"
        assert (old.calls, new.calls) == (1, 1)
        await talk.write(b"2")
        assert await talk.read() == b"2"
        assert len(front.front._channels) == 1
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        assert await talk.code() is grpc.StatusCode.OK


async def test_a_channel_that_was_asked_for_many_methods_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc's channels keep something of each method until they are closed."""
    monkeypatch.setattr(grpc_channels, "_MOST_STRANGE_CALLS", 20)
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        talk = client.stream_stream(SERVICE + "Echo")(metadata=NAMED)  # stays with the first one
        await talk.write(b"1")
        assert await talk.read() == b"1"
        (first,) = front.front._channels._links.values()
        for number in range(63 + 20):
            assert await client.unary_unary(f"/any.Service{number}/Echo")(b"x", metadata=NAMED) == b"x"
        assert [*front.front._channels._links.values()] == [first]
        await client.unary_unary("/any.Other/Echo")(b"x", metadata=NAMED)
        assert first.gone and [*front.front._channels._links.values()] != [first]
        await talk.write(b"2")
        assert await talk.read() == b"2"
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        await eventually(lambda: first.calls == 0)
