"""What the router's gRPC front passes on, to a peer that shows all of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_front_harness import SERVICE, Peer, endpoint, peer, router
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from penstock.core.protobuf import length_prefix
from penstock.fleet.router import grpc_channels, hooks
from penstock.fleet.router.decision import Decider
from penstock.fleet.router.mirror import Mirror
from penstock.fleet.routes import Arm, Endpoint, Tenant, Upstream
from penstock.fleet.spec import Match, Requests, Shadow, Sticky
from penstock.fleet.store.batch import Decision
from penstock.fleet.traffic import linucb

INFER = "/inference.GRPCInferenceService/ModelInfer"
NAMED = (("penstock-endpoint", "m"),)


def infer_request(name: str, padding: int = 0) -> bytes:
    """A ModelInferRequest with a name, an id, and raw contents."""
    parts = [(1, name.encode()), (3, b"id-1"), (7, b"x" * padding)]
    return b"".join(length_prefix(number, len(text)) + text for number, text in parts)


async def fails(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def eventually(condition: Any, within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        await asyncio.sleep(0.01)


def channel(address: str, **options: Any) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[(f"grpc.{key}", value) for key, value in options.items()])


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


@pytest.mark.parametrize("key", ["penstock-endpoint", "mm-model-id", "mm-vmodel-id", "seldon-model", "seldon"])
async def test_metadata_names_the_endpoint(key: str) -> None:
    async with (
        peer() as one,
        peer() as other,
        router(endpoint("m", one.address), endpoint("n", other.address)) as front,
        channel(front.address) as client,
    ):
        await client.unary_unary(SERVICE + "Echo")(b"", metadata=((key, "n"),))
        await client.unary_unary(INFER)(infer_request("m"), metadata=((key, "n"),))  # before the message
        assert (one.calls, other.calls) == (0, 2)
        error = await fails(client.unary_unary(SERVICE + "Echo")(b"", metadata=((key, "nobody"),)))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_messages_and_rules_name_the_endpoint() -> None:
    async with peer() as one, peer() as other:
        ruled = endpoint("n", other.address, matches=(Match(host="n.example"), Match(headers={"Team": "n"})))
        async with router(endpoint("m", one.address), ruled) as front, channel(front.address) as client:
            await client.unary_unary(INFER)(infer_request("m", padding=1 << 20))
            assert (one.calls, other.calls) == (1, 0)
            await client.unary_unary(INFER)(infer_request("m"), metadata=(("team", "n"),))
            await client.unary_unary(SERVICE + "Echo")(b"", metadata=(("x-forwarded-host", "n.example:8081"),))
            assert (one.calls, other.calls) == (1, 2)
            spec = length_prefix(1, 1) + b"n"
            predict = "/tensorflow.serving.PredictionService/Predict"
            await client.unary_unary(predict)(length_prefix(1, len(spec)) + spec)
            assert other.calls == 3
            stream = client.stream_stream(INFER.replace("ModelInfer", "ModelStreamInfer"))(iter([infer_request("m")]))
            assert [message async for message in stream] == [infer_request("m")]
            assert one.calls == 2
            for method, message, code in (
                (INFER, infer_request("nobody"), grpc.StatusCode.NOT_FOUND),
                (INFER, b"", grpc.StatusCode.INVALID_ARGUMENT),
                (INFER, b"\xff" * 50, grpc.StatusCode.INVALID_ARGUMENT),
                (SERVICE + "Echo", b"", grpc.StatusCode.NOT_FOUND),
                (
                    INFER.replace("ModelInfer", "RepositoryModelUnload"),
                    infer_request("m"),
                    grpc.StatusCode.UNIMPLEMENTED,
                ),
            ):
                assert (await fails(client.unary_unary(method)(message))).code() is code


async def test_keys_are_asked_for_and_do_not_travel_on() -> None:
    tenants = [
        Tenant("acme", hashlib.sha256(b"key").hexdigest(), rate=1e-3, burst=2),
        Tenant("other", hashlib.sha256(b"other").hexdigest(), deployments=("n",)),
    ]
    async with (
        peer() as replica,
        router(endpoint("m", replica.address), tenants=tenants) as front,
        channel(front.address) as client,
    ):
        echo = client.unary_unary(SERVICE + "Echo")
        for shown in ((), (("authorization", "Bearer no"),), (("x-api-key", "no"),)):
            error = await fails(echo(b"x" * 1000, metadata=(*NAMED, *shown)))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        error = await fails(echo(b"", metadata=(*NAMED, ("x-api-key", "other"))))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        await echo(b"", metadata=(*NAMED, ("authorization", "Bearer key")))
        await echo(b"", metadata=(*NAMED, ("x-api-key", "key")))
        assert "authorization" not in replica.metadata and "x-api-key" not in replica.metadata
        error = await fails(echo(b"", metadata=(*NAMED, ("x-api-key", "key"))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(dict(error.trailing_metadata())["retry-after"]) > 1
        assert replica.calls == 2
        health = health_pb2_grpc.HealthStub(client)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        assert front.hooks.tenants.take_used() == {"acme": 2}


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


async def test_sessions_stay_with_their_replica() -> None:
    sticky = Requests(affinity=Sticky(name="session"))
    async with (
        peer() as one,
        peer() as other,
        router(endpoint("m", one.address, other.address, requests=sticky)) as front,
        channel(front.address) as client,
    ):
        for user in range(8):
            before = one.calls, other.calls
            for _ in range(4):
                await client.unary_unary(INFER)(infer_request("m"), metadata=(("session", f"user{user}"),))
            assert 4 in (one.calls - before[0], other.calls - before[1])
        assert one.calls and other.calls


async def test_logged_endpoints_answer_with_a_token() -> None:
    class Choice:
        """The decisions of a router that always chooses the second arm."""

        def __init__(self) -> None:
            self.seen: list[tuple[str, int, int]] = []

        def decide(self, endpoint: Endpoint, headers: hooks.Headers, body: bytes, number: float) -> hooks.Decision:
            assert 0 <= number < 1 and body == b""
            return hooks.Decision(1, 0.25, f"token-{headers['user']}")

        def answered(
            self, endpoint: Endpoint, decision: hooks.Decision, revision: int, status: int, latency_s: float
        ) -> None:
            self.seen.append((decision.token, revision, status))

    async with peer() as one, peer() as other:
        arms = (Arm(1, 1.0, (Upstream("a", "", one.address),)), Arm(2, 0.0, (Upstream("b", "", other.address),)))
        choice = Choice()
        async with (
            router(Endpoint("m", arms, 1, logged=True), decisions=choice) as front,
            channel(front.address) as client,
        ):
            call = client.unary_unary(INFER)(infer_request("m"), metadata=(("user", "u"),))
            await call
            lead = dict(await call.initial_metadata())
            assert (lead["penstock-decision"], lead["penstock-revision"]) == ("token-u", "2")
            await fails(client.unary_unary(SERVICE + "Fail")(b"", metadata=(*NAMED, ("user", "v"))))
            assert choice.seen == [("token-u", 2, 200), ("token-v", 2, 503)]


async def test_questions_about_a_model_are_no_decisions_and_judge_no_revision() -> None:
    class Nothing:
        def decide(self, endpoint: Endpoint, headers: hooks.Headers, body: bytes, number: float) -> hooks.Decision:
            raise AssertionError("nothing is to be decided")

        def answered(self, *answer: object) -> None: ...

    async with peer() as one:
        arms = (Arm(1, 1.0, (Upstream("a", "", one.address),)),)
        logged = Endpoint("m", arms, 1, logged=True, sticky=Sticky(by="header", name="user"))
        async with router(logged, decisions=Nothing()) as front, channel(front.address) as client:
            for method in ("ModelReady", "ModelMetadata"):
                call = client.unary_unary("/inference.GRPCInferenceService/" + method)(infer_request("m"))
                await call
                assert "penstock-decision" not in dict(await call.initial_metadata())
            (lane,) = front.balancer.services["m"].lanes
            assert lane.tally.by_status[2] == 2 and lane.tally.take() is None


async def test_with_no_arm_that_has_a_weight_the_stable_one_answers() -> None:
    class Nowhere:
        def decided(self, decision: Decision) -> None: ...

    async with peer() as one, peer() as other:
        arms = (Arm(1, 0.0, (Upstream("a", "", one.address),)), Arm(2, 0.0, (Upstream("b", "", other.address),)))
        logged = Endpoint("m", arms, 2, logged=True, sticky=Sticky(by="header", name="user"))
        decider = Decider(Nowhere(), lambda name: linucb.plug)
        async with router(logged, decisions=decider) as front, channel(front.address) as client:
            call = client.unary_unary(INFER)(infer_request("m"), metadata=(("user", "u"),))
            await call
            assert dict(await call.initial_metadata())["penstock-revision"] == "2"


def infer_response(*values: float, name: str = "y", typed: bool = False) -> bytes:
    from tritonclient.grpc import service_pb2

    made = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    tensor = made.outputs.add(name=name, datatype="FP32", shape=[len(values)])
    if typed:
        tensor.contents.fp32_contents.extend(values)
    else:
        made.raw_output_contents.append(np.array(values, "<f4").tobytes())
    encoded: bytes = made.SerializeToString()
    return encoded


def answering(replica: Peer, *answers: bytes | grpc.StatusCode | float) -> None:
    """Makes a peer give these, one call after the other: a message, an error, or a message after some seconds."""
    left = list(answers)

    async def run(what: str, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            pass
        answer = left.pop(0)
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "no")
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = b"late"
        await context.write(answer)

    replica._run = run  # type: ignore[method-assign]


async def test_a_shadow_gets_copies_and_is_compared_by_value() -> None:
    mirror = Mirror()
    mirror.start()
    async with peer() as live, peer() as copied:
        same, near, far = infer_response(1, 2), infer_response(1, 2, typed=True), infer_response(1, 3)
        answering(live, same, same, same, grpc.StatusCode.INTERNAL, same, same)
        answering(copied, same, near, far, same, grpc.StatusCode.INTERNAL, 30.0)
        arms = (Arm(1, 1.0, (Upstream("a", "", live.address),)), Arm(2, 0.0, (Upstream("b", "", copied.address),)))
        shadowed = Endpoint("m", arms, 1, shadow=Shadow(2))
        async with router(shadowed, mirror=mirror) as front, channel(front.address) as client:
            infer = client.unary_unary(INFER)
            for number in range(5):
                if number == 3:
                    assert (await fails(infer(infer_request("m")))).code() is grpc.StatusCode.INTERNAL
                else:
                    assert await infer(infer_request("m")) == same
                await eventually(lambda number=number: copied.calls == number + 1 and front.in_flight == 0)
            await infer(infer_request("m", padding=300_000))  # too large to be copied
            assert copied.calls == 5
        mirror.close()
        ((arm, document),) = mirror.take().items()
        assert arm == ("m", 0, 2)
        found = json.loads(document)
        counts = {name: found["counts"][name] for name in ("compared", "outputs", "equal", "unlike", "too_large")}
        assert counts == {"compared": 5, "outputs": 3, "equal": 2, "unlike": 0, "too_large": 1}
        assert found["statuses"] == {"200/200": 3, "500/200": 1, "200/500": 1} and found["largest"]["max_abs"] == 1.0
        lanes = front.balancer.services["m"].lanes
        assert lanes[0].tally.by_status[2:] == [5, 0, 0, 1] and lanes[1].tally.by_status[2:] == [4, 0, 0, 1]


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
