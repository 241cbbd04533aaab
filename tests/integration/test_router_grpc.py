"""Calls of every kind through the router's gRPC front: metadata, trailers, statuses, ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_front_calls import INFER, NAMED, channel, eventually, fails, infer_request
from grpc_front_harness import SERVICE, endpoint, peer, router
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from penstock.core.protobuf import length_prefix


async def test_unary_calls_of_unknown_services_pass_with_metadata_and_trailers() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        sent = (*NAMED, ("text", "a b"), ("binary-bin", b"\x00\x01\xff"), ("twice", "1"), ("twice", "2"))
        call = client.unary_unary(SERVICE + "Echo")(b"\x00any bytes\xff", metadata=sent)
        assert await call == b"\x00any bytes\xff"
        lead, trail = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
        assert lead["lead"] == "first" and lead["lead-bin"] == b"\x00\xff" and lead["penstock-revision"] == "7"
        assert trail["count"] == "1" and trail["tail-bin"] == b"\x01"
        assert replica.metadata["text"] == "a b" and replica.metadata["binary-bin"] == b"\x00\x01\xff"
        assert replica.remaining_s is None or replica.remaining_s > 1e6  # no deadline was invented for a stream
        assert front.balancer.services["m"].lanes[0].tally.by_status[2] == 1


async def test_known_unary_methods_pass_alike_and_get_the_deployments_timeout() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        call = client.unary_unary(INFER)(infer_request("m"))
        assert await call == infer_request("m")
        lead, trail = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
        assert lead["lead-bin"] == b"\x00\xff" and lead["penstock-revision"] == "7" and trail["count"] == "1"
        assert replica.remaining_s is not None and 50 < replica.remaining_s < 61


@pytest.mark.parametrize("method", [SERVICE + "Fail", INFER.replace("ModelInfer", "ModelConfig")])
async def test_a_replicas_status_passes_with_code_details_and_rich_details(method: str) -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        replica.status = grpc.StatusCode.FAILED_PRECONDITION
        run = replica._run
        replica._run = lambda what, context: run("Fail", context)  # type: ignore[method-assign]
        error = await fails(client.unary_unary(method)(infer_request("m"), metadata=NAMED))
        assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "with its own words")
        trail = dict(error.trailing_metadata())
        assert trail["grpc-status-details-bin"] == b"\x08\x05rich" and trail["why"] == "because"
        assert dict(error.initial_metadata())["penstock-revision"] == "7"


async def test_all_four_kinds_of_calls_pass() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:

        async def messages() -> Any:
            for number in range(50):
                yield b"%d" % number

        assert await client.stream_unary(SERVICE + "Collect")(messages(), metadata=NAMED) == b"50"
        burst = client.unary_stream(SERVICE + "Burst")(b"200", metadata=NAMED)
        assert [message async for message in burst] == [b"%d" % number for number in range(200)]
        echo = client.stream_stream(SERVICE + "Echo")(messages(), metadata=NAMED)
        assert [message async for message in echo] == [b"%d" % number for number in range(50)]
        assert dict(await echo.trailing_metadata())["count"] == "50"
        talk = client.stream_stream(SERVICE + "Echo")(metadata=NAMED)  # one by one: nothing is kept back
        for number in range(20):
            await talk.write(b"%d" % number)
            assert await asyncio.wait_for(talk.read(), 10) == b"%d" % number
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        early = client.stream_stream(SERVICE + "Early")(metadata=NAMED)  # it ends while the caller could still send
        await early.write(b"1")
        assert await early.read() == b"enough" and await early.read() is grpc.aio.EOF
        assert await early.code() is grpc.StatusCode.OK


async def test_initial_metadata_comes_before_the_first_message() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        talk = client.stream_stream(SERVICE + "Echo")(metadata=NAMED)
        assert dict(await asyncio.wait_for(talk.initial_metadata(), 10))["lead"] == "first"
        talk.cancel()


async def test_a_stream_that_breaks_ends_with_its_status_and_never_cleanly() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        talk = client.stream_stream(SERVICE + "Break")(iter([b"1", b"2", b"3", b"4"]), metadata=NAMED)
        assert [await talk.read(), await talk.read()] == [b"1", b"2"]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await talk.read()
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.DATA_LOSS, "broke in the middle")


@pytest.mark.parametrize("method", [SERVICE + "Sleep", INFER])
async def test_a_caller_that_leaves_ends_the_replicas_call(method: str) -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        run = replica._run
        replica._run = lambda what, context: run("Sleep", context)  # type: ignore[method-assign]
        call = client.unary_unary(method)(infer_request("m"), metadata=NAMED)
        asyncio.get_running_loop().create_task(call.wait_for_connection())
        await asyncio.wait_for(replica.started.wait(), 10)
        assert front.in_flight == 1
        call.cancel()
        await asyncio.wait_for(replica.cancelled.wait(), 10)
        await eventually(lambda: front.in_flight == 0)


async def test_a_deadline_ends_both_calls_and_the_replica_knows_what_is_left() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        began = time.monotonic()
        error = await fails(client.unary_unary(SERVICE + "Sleep")(b"", metadata=NAMED, timeout=0.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - began < 5
        assert replica.remaining_s is not None and 0 < replica.remaining_s < 0.55
        await asyncio.wait_for(replica.cancelled.wait(), 10)
        in_ms = (*NAMED, ("penstock-timeout-ms", "300"))
        error = await fails(client.unary_unary(SERVICE + "Sleep")(b"", metadata=in_ms))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert replica.remaining_s is not None and replica.remaining_s < 0.35
        assert "penstock-timeout-ms" not in replica.metadata
        for wrong in ("x", "0", "-1", "nan"):
            error = await fails(client.unary_unary(SERVICE + "Echo")(b"", metadata=(*NAMED, (in_ms[1][0], wrong))))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_and_reflection_tell_what_is() -> None:
    async with router() as front, channel(front.address) as client, peer() as replica:
        health = health_pb2_grpc.HealthStub(client)
        kinds = health_pb2.HealthCheckResponse

        async def check(name: str) -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest(service=name))).status)

        watch = health.Watch(health_pb2.HealthCheckRequest(service="m"))
        assert (await watch.read()).status == kinds.SERVICE_UNKNOWN
        assert await check("") == await check("inference.GRPCInferenceService") == kinds.SERVING
        assert (await fails(check("m"))).code() is grpc.StatusCode.NOT_FOUND
        front.follow(endpoint("m"))
        assert (await watch.read()).status == await check("m") == kinds.NOT_SERVING
        ready = client.unary_unary(INFER.replace("ModelInfer", "ModelReady"))
        assert await ready(length_prefix(1, 1) + b"m") == b""
        front.follow(endpoint("m", waking=True))
        assert (await watch.read()).status == await check("m") == kinds.SERVING
        assert await ready(length_prefix(1, 1) + b"m") == b"\x08\x01"
        assert front.balancer.services["m"].waiting == 0  # a probe wakes nobody
        front.follow(endpoint("m", replica.address))
        assert await ready(length_prefix(1, 1) + b"m") == length_prefix(1, 1) + b"m"  # the replica's own word

        def services() -> list[str]:
            with grpc.insecure_channel(front.address) as plain:
                return sorted(ProtoReflectionDescriptorDatabase(plain).get_services())

        found = await asyncio.to_thread(services)
        assert {"grpc.health.v1.Health", "inference.GRPCInferenceService"} <= set(found)
        front.front._health.stop()
        assert (await watch.read()).status == await check("") == kinds.NOT_SERVING


async def test_messages_beyond_the_limit_are_refused() -> None:
    async with (
        peer() as replica,
        router(endpoint("m", replica.address), max_message_bytes=10_000) as front,
        channel(front.address) as client,
    ):
        for method in (INFER, SERVICE + "Echo"):
            error = await fails(client.unary_unary(method)(infer_request("m", 20_000), metadata=NAMED))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await client.unary_unary(INFER)(infer_request("m")) == infer_request("m")


async def test_bursts_beyond_grpcs_defaults_are_all_answered() -> None:
    async with peer() as replica, router(endpoint("m", replica.address)) as front, channel(front.address) as client:
        call = client.unary_unary(INFER)
        answers = await asyncio.gather(*(call(infer_request("m")) for _ in range(1500)))
        assert answers == [infer_request("m")] * 1500
        assert replica.calls == 1500 and front.in_flight == 0
