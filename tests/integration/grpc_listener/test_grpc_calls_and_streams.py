"""Deadlines, cancellation and streams of the real gRPC clients, blocking and asyncio."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_serving import (
    INFER,
    SECONDS,
    N,
    Serving,
    X,
    on_this_loop,
    raw_request,
    serving,
    stream_of,
    tensor,
)
from numpy_door import numpy_model
from tritonclient.utils import InferenceServerException

from penstock.protocols.v2_grpc import plug
from penstock.runtime.listeners.grpc import GrpcOptions


def test_grpc_deadline_becomes_the_requests_deadline_and_takes_it_out_of_the_queue(served: Serving) -> None:
    gated = served.door.served["gated"]
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFER)(raw_request(X, "gated", id="late"), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    served.call(lambda: gated.gate.set())
    assert gated.waiting == ["late"] and gated.seen == []


def test_timeout_parameter_ends_a_request_without_a_grpc_deadline(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("gated", [tensor(X)], timeout=50_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_cancelled_call_is_taken_out_of_the_queue(served: Serving, client: triton.InferenceServerClient) -> None:
    gated = served.door.served["gated"]
    answers: queue.Queue[Any] = queue.Queue()
    context = client.async_infer(
        "gated", [tensor(X)], callback=lambda result, error: answers.put((result, error)), request_id="gone"
    )
    served.until(lambda: gated.waiting == ["gone"])
    context.cancel()
    result, error = answers.get(timeout=SECONDS)
    assert result is None and "cancelled" in str(error).lower()
    served.until(lambda: gated.cancelled == ["gone"])
    served.call(lambda: gated.gate.set())
    assert gated.seen == []


@pytest.mark.parametrize("asked", [True, False])
def test_decoupled_model_answers_a_stream_in_order(served: Serving, asked: bool) -> None:
    client, answers = stream_of(served.address)
    client.async_stream_infer("counter", [tensor(N, "INT32", "n")], request_id="5", enable_empty_final_response=asked)
    client.stop_stream()
    got = [answers.get_nowait() for _ in range(answers.qsize())]
    assert all(error is None for _, error in got)
    numbers = [result.as_numpy("i") for result, _ in got]
    finals = [result.get_response().parameters["triton_final_response"].bool_param for result, _ in got]
    assert [number.item() for number in numbers[:3]] == [0, 1, 2]
    assert finals == [False, False, False] + [True] * asked
    assert {result.get_response().id for result, _ in got} == {"5"}


def test_stream_answers_a_later_request_first_when_it_is_ready_first(served: Serving) -> None:
    client, answers = stream_of(served.address)
    client.async_stream_infer("gated", [tensor(X)], request_id="slow")
    client.async_stream_infer("double", [tensor(X)], request_id="quick")
    result, error = answers.get(timeout=SECONDS)
    assert error is None and result.get_response().id == "quick"
    assert result.get_response().parameters["triton_final_response"].bool_param is True
    served.call(lambda: served.door.served["gated"].gate.set())
    result, error = answers.get(timeout=SECONDS)
    assert error is None and result.get_response().id == "slow"
    client.close()


def test_stream_goes_on_after_an_error(served: Serving) -> None:
    client, answers = stream_of(served.address)
    for model in ("nobody", "broken", "double"):
        client.async_stream_infer(model, [tensor(X)], request_id=model)
    got = [answers.get(timeout=SECONDS) for _ in range(3)]
    client.close()
    errors = sorted(str(error) for _, error in got if error is not None)
    assert len(errors) == 2 and "nobody" in errors[0] + errors[1] and "own fault" in errors[0] + errors[1]
    assert any(error is None for _, error in got)


def test_stream_error_is_a_status_when_the_client_asks_for_it(served: Serving) -> None:
    client, answers = stream_of(served.address, headers={"triton_grpc_error": "true"})
    client.async_stream_infer("broken", [tensor(X)])
    _, error = answers.get(timeout=SECONDS)
    assert error is not None and error.status() == "StatusCode.INTERNAL"
    client.close()


def test_cancelled_stream_stops_the_model(served: Serving) -> None:
    endless_model = served.door.served["endless"]
    client, answers = stream_of(served.address)
    client.async_stream_infer("endless", [tensor(N, "INT32", "n")], request_id="e")
    answers.get(timeout=SECONDS)
    client.stop_stream(cancel_requests=True)
    served.until(lambda: endless_model.stopped == ["e"])


def test_stream_reader_that_stops_reading_holds_the_model_back(served: Serving) -> None:
    sent = 0

    def large(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
        nonlocal sent
        while sent < 2000:
            sent += 1
            yield {"i": np.zeros((1, 100_000), dtype="i4")}

    served.door.served["large"] = numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, k]"}, answer=large)
    request = triton.service_pb2.ModelInferRequest(model_name="large")
    request.inputs.add(name="n", datatype="INT32", shape=[1, 1]).contents.int_contents.append(1)
    with grpc.insecure_channel(served.address) as channel:
        call = channel.stream_stream(f"/{plug.service}/ModelStreamInfer")(iter([request.SerializeToString()]))
        next(call)
        seen = -1
        while seen != sent:  # it has come to a stop when it does not move in half a second
            seen = sent
            threading.Event().wait(0.5)
        assert sent < 200
        call.cancel()


def test_more_messages_than_a_stream_may_have_in_flight_wait_unread() -> None:
    with serving(GrpcOptions(max_stream_in_flight=2)) as running:
        gated = running.door.served["gated"]
        client, answers = stream_of(running.address)
        for number in range(4):
            client.async_stream_infer("gated", [tensor(X)], request_id=str(number))
        running.call(lambda: gated.gate.set())
        assert {answers.get(timeout=SECONDS)[0].get_response().id for _ in range(4)} == {"0", "1", "2", "3"}
        client.close()


async def test_asyncio_client_infers_and_streams_on_the_servers_own_loop() -> None:
    async with on_this_loop() as (_, address), triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer("double", [tensor(X * k)]) for k in range(20)))
        for k, result in enumerate(results):
            np.testing.assert_array_equal(result.as_numpy("y"), X * k * 2)

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "counter", "inputs": [tensor(N, "INT32", "n")]}

        got = [result.as_numpy("i").item() async for result, error in client.stream_infer(requests()) if not error]
        assert got == [0, 1, 2]


async def test_cancelling_the_asyncio_client_cancels_the_future() -> None:
    async with on_this_loop() as (door, address), triton_aio.InferenceServerClient(address) as client:
        call = asyncio.ensure_future(client.infer("gated", [tensor(X)], request_id="left"))
        await asyncio.wait((call,), timeout=0.1)
        call.cancel()
        async with asyncio.timeout(SECONDS):
            while door.served["gated"].cancelled != ["left"]:  # noqa: ASYNC110  # a list tells no changes
                await asyncio.sleep(0.002)
