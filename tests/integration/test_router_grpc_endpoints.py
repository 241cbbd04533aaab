"""Which endpoint a gRPC call means, whose key it needs, and what is decided of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_front_calls import INFER, NAMED, channel, eventually, fails, infer_request
from grpc_front_harness import SERVICE, Peer, endpoint, peer, router
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.core.protobuf import length_prefix
from penstock.fleet.router import hooks
from penstock.fleet.router.decision import Decider
from penstock.fleet.router.mirror import Mirror
from penstock.fleet.routes import Arm, Endpoint, Tenant, Upstream
from penstock.fleet.spec import Match, Requests, Shadow, Sticky
from penstock.fleet.store.batch import Decision
from penstock.fleet.traffic import linucb


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
