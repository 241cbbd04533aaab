"""The gRPC listener with the real clients, in front of a door over plain functions."""

from __future__ import annotations

import asyncio
import queue
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy_door import NumpyDoor, NumpyModel, numpy_model
from tritonclient.utils import InferenceServerException

from penstock.core.errors import (
    InvalidInput,
    NotFound,
    Overloaded,
    PenstockError,
    QuotaExceeded,
    ServableError,
    TooLarge,
)
from penstock.core.messages import Request, Response
from penstock.core.tensor import TensorSpec
from penstock.protocols.v2_grpc import plug
from penstock.runtime.listeners.grpc import GrpcListener, GrpcOptions

SECONDS = 10.0  # until a state that a test waits for must be there


def double(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * 2}


def same(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def fails(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    raise ValueError("the model's own fault")


def counts(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    for number in range(int(inputs["n"].ravel()[0])):
        yield {"i": np.array([[number]], dtype="i4")}


def endless(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield {"i": np.zeros((1, 1), dtype="i4")}


def models() -> dict[str, NumpyModel]:
    labelled = TensorSpec("y", "FP32", (-1, -1), labels=("cat", "dog", "cow"))
    served = {
        "double": numpy_model({"x": "f4[n, k]"}, {"y": labelled}, predict=double),
        "gated": numpy_model({"x": "f4[n, k]"}, {"y": "f4[n, k]"}, predict=double, gate=asyncio.Event()),
        "broken": numpy_model({"x": "f4[n, k]"}, {"y": "f4[n, k]"}, predict=fails),
        "counter": numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, 1]"}, answer=counts),
        "endless": numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, 1]"}, answer=endless),
    }
    for datatype in ("bool", "i1", "i8", "u2", "u8", "f2", "f8", "bf2", "bytes"):
        served[f"same_{datatype}"] = numpy_model({"x": f"{datatype}[n, k]"}, {"y": f"{datatype}[n, k]"}, predict=same)
    return served


class Serving:
    """A listener on a loop of its own thread, so that blocking clients can be driven from the test."""

    def __init__(self, options: GrpcOptions, door: Callable[[], NumpyDoor]) -> None:
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._make_door = door
        self._options = options
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        uvloop = pytest.importorskip("uvloop")
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        try:
            self.door = self._make_door()
            self.listener = GrpcListener(self.door, [plug], self._options)
            self.address = f"127.0.0.1:{await self.listener.start('127.0.0.1', 0)}"
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._started.set()
        await self._end.wait()
        await self.listener.stop(0.0)

    def __enter__(self) -> Serving:
        self._thread.start()
        self._started.wait(SECONDS)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on the listener's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(SECONDS)

    def until(self, claim: Callable[[], object]) -> None:
        """Waits until `claim` is true on the listener's loop."""

        async def poll() -> None:
            async with asyncio.timeout(SECONDS):
                while not claim():  # noqa: ASYNC110  # what is claimed tells no changes
                    await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(poll(), self.loop).result(SECONDS + 1)

    def stop(self, grace_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(self.listener.stop(grace_s), self.loop)


def serving(options: GrpcOptions | None = None, door: Callable[[], NumpyDoor] | None = None) -> Serving:
    return Serving(options or GrpcOptions(), door or (lambda: NumpyDoor(models())))


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving() as running:
        yield running


@pytest.fixture
def client(served: Serving) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as made:
        yield made


def tensor(array: np.ndarray, datatype: str = "FP32", name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


X = np.arange(6, dtype="f4").reshape(2, 3)


# Unary inference


def test_answer_of_the_real_client(client: triton.InferenceServerClient) -> None:
    result = client.infer("double", [tensor(X)], request_id="77", priority=1, timeout=5_000_000)
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)
    assert (result.get_response().id, result.get_response().model_version) == ("77", "1")


@pytest.mark.parametrize(
    ("datatype", "model", "array"),
    [
        ("BOOL", "same_bool", np.array([[True, False]])),
        ("INT8", "same_i1", np.array([[-128, 127]], "i1")),
        ("INT64", "same_i8", np.array([[-(2**63), 2**63 - 1]], "i8")),
        ("UINT16", "same_u2", np.array([[0, 65535]], "u2")),
        ("UINT64", "same_u8", np.array([[2**64 - 1]], "u8")),
        ("FP16", "same_f2", np.array([[0.5, -np.inf]], "f2")),
        ("FP64", "same_f8", np.array([[0.1]], "f8")),
        ("BYTES", "same_bytes", np.array([["é".encode(), b"", b"\0"]], dtype=object)),
    ],
)
def test_every_kind_of_datatype_comes_back_as_it_was(
    client: triton.InferenceServerClient, datatype: str, model: str, array: np.ndarray
) -> None:
    result = client.infer(model, [tensor(array, datatype)])
    assert result.get_output("y").datatype == datatype
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_bf16_values_come_back_in_two_bytes_each(served: Serving) -> None:
    request = triton.service_pb2.ModelInferRequest(model_name="same_bf2")
    request.inputs.add(name="x", datatype="BF16", shape=[1, 2])
    request.raw_input_contents.append(b"\xc0\x3f\x00\xc0")
    with grpc.insecure_channel(served.address) as channel:
        answer = channel.unary_unary(INFER)(request.SerializeToString())
    result = triton.service_pb2.ModelInferResponse.FromString(answer)
    assert (result.outputs[0].datatype, result.raw_output_contents[0]) == ("BF16", b"\xc0\x3f\x00\xc0")


def test_large_tensor_comes_back_whole(client: triton.InferenceServerClient) -> None:
    large = np.random.default_rng(0).random((64, 10_000), dtype="f4")
    np.testing.assert_array_equal(client.infer("double", [tensor(large)]).as_numpy("y"), large * 2)


def test_classification_of_the_real_client(client: triton.InferenceServerClient) -> None:
    result = client.infer("double", [tensor(X)], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    assert result.as_numpy("y").tolist() == [
        [b"4.000000:2:cow", b"2.000000:1:dog"],
        [b"10.000000:2:cow", b"8.000000:1:dog"],
    ]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_request_is_read(client: triton.InferenceServerClient, algorithm: str) -> None:
    result = client.infer("double", [tensor(X)], compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)


def test_answers_are_compressed_when_the_server_is_told_to() -> None:
    zeros = np.zeros((1, 1_000_000), "f4")
    with serving(GrpcOptions(response_compression="gzip", timing_metadata=True)) as running:
        with grpc.insecure_channel(running.address, [("grpc.max_receive_message_length", -1)]) as channel:
            answer = channel.unary_unary(INFER)(raw_request(zeros))
            assert len(answer) > 4_000_000
        with triton.InferenceServerClient(running.address) as client:
            np.testing.assert_array_equal(client.infer("double", [tensor(X)]).as_numpy("y"), X * 2)


INFER = f"/{plug.service}/ModelInfer"


def raw_request(array: np.ndarray, model: str = "double", **fields: Any) -> bytes:
    request = triton.service_pb2.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name="x", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    data: bytes = request.SerializeToString()
    return data


def test_timing_is_in_the_trailing_metadata_when_enabled() -> None:
    with serving(GrpcOptions(timing_metadata=True)) as running, grpc.insecure_channel(running.address) as channel:
        _, call = channel.unary_unary(INFER).with_call(raw_request(X))
        assert "compute;dur=" in dict(call.trailing_metadata())["server-timing"]


# Errors


class Failing(NumpyDoor):
    """Fails every call with `error`."""

    error: PenstockError = InvalidInput("bad")

    def submit(self, request: Request) -> asyncio.Future[Response]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "trailers"),
    [
        (InvalidInput("bad"), "INVALID_ARGUMENT", {}),
        (NotFound("gone"), "NOT_FOUND", {}),
        (TooLarge("big"), "RESOURCE_EXHAUSTED", {"grpc-retry-pushback-ms": "-1"}),
        (QuotaExceeded("quota"), "RESOURCE_EXHAUSTED", {}),
        (
            Overloaded("full", retry_after_s=0.25),
            "UNAVAILABLE",
            {"retry-after": "0.25", "grpc-retry-pushback-ms": "250"},
        ),
        (ServableError("boom"), "INTERNAL", {}),
        (ServableError("x" * 20_000), "INTERNAL", {}),
        (ServableError("é" * 20_000), "INTERNAL", {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_status_and_says_when_to_come_back(
    error: PenstockError, status: str, trailers: dict[str, str]
) -> None:
    def door() -> NumpyDoor:
        made = Failing(models())
        made.error = error
        return made

    with serving(door=door) as running, grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(raw_request(X))
        assert caught.value.code().name == status
        assert error.message.startswith(caught.value.details()) and caught.value.details()
        assert {k: v for k, v in caught.value.trailing_metadata() if k.startswith(("retry", "grpc-retry"))} == trailers


def test_error_of_the_model_reaches_the_real_client(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="the model's own fault") as caught:
        client.infer("broken", [tensor(X)])
    assert caught.value.status() == "StatusCode.INTERNAL"
    with pytest.raises(InferenceServerException, match="nobody") as caught:
        client.infer("nobody", [tensor(X)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"


class Surprising(NumpyDoor):
    def submit(self, request: Request) -> asyncio.Future[Response]:
        raise KeyError("/secret/path")


def test_unforeseen_exception_is_internal_and_tells_nothing() -> None:
    with serving(door=lambda: Surprising(models())) as running, grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(raw_request(X))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in caught.value.details()


def test_unknown_method_is_unimplemented(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{plug.service}/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_message_beyond_the_limit_is_refused_compressed_or_not(compression: grpc.Compression | None) -> None:
    with serving(GrpcOptions(max_message_bytes=100_000)) as running:
        with grpc.insecure_channel(running.address, compression=compression) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFER)(raw_request(np.zeros((1, 1_000_000), "f4")))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert channel.unary_unary(INFER)(raw_request(X))
        assert len(running.door.served["double"].seen) == 1


# Deadlines and cancellation


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


# Streams


def stream_of(
    address: str, **options: Any
) -> tuple[triton.InferenceServerClient, queue.Queue[tuple[Any, InferenceServerException | None]]]:
    client = triton.InferenceServerClient(address)
    answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), **options)
    return client, answers


N = np.array([[3]], dtype="i4")


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


# asyncio client


@asynccontextmanager
async def on_this_loop(**options: Any) -> AsyncIterator[tuple[NumpyDoor, str]]:
    door = NumpyDoor(models())
    listener = GrpcListener(door, [plug], GrpcOptions(**options))
    port = await listener.start("127.0.0.1", 0)
    try:
        yield door, f"127.0.0.1:{port}"
    finally:
        await listener.stop(0.0)


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


# The other methods of the real client


def test_client_reads_health_metadata_configuration_and_statistics(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("double")
    assert client.is_model_ready("nobody") is False
    assert client.get_server_metadata().name == "penstock"
    metadata = client.get_model_metadata("double", as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1"]}]
    config = client.get_model_config("counter").config
    assert config.model_transaction_policy.decoupled and config.max_batch_size == 8
    client.infer("double", [tensor(X)])
    (statistics,) = client.get_inference_statistics("double").model_stats
    assert (statistics.inference_count, statistics.inference_stats.success.count) == (1, 1)


def test_client_loads_unloads_and_lists(served: Serving, client: triton.InferenceServerClient) -> None:
    client.unload_model("double")
    assert not client.is_model_ready("double")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("double", [tensor(X)])
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert "double" not in {
        model.name for model in client.get_model_repository_index().models if model.state == "READY"
    }
    client.load_model("double", config='{"max_batch_size": 2}', files={"file:1/model.npy": b"data"})
    assert served.door.loads == [("double", {"max_batch_size": 2}, {"1/model.npy": b"data"})]
    assert client.is_model_ready("double")


def test_client_changes_trace_and_log_settings(client: triton.InferenceServerClient) -> None:
    settings = client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "7"})
    assert list(settings.settings["trace_rate"].value) == ["7"]
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["TIMESTAMPS"]
    client.update_log_settings({"log_verbose_level": 1, "log_info": False})
    assert client.get_log_settings().settings["log_verbose_level"].uint32_param == 1


def test_client_is_told_that_there_is_no_shared_memory(client: triton.InferenceServerClient) -> None:
    for call in (
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        partial(client.register_system_shared_memory, "r", "/k", 8),
        client.unregister_system_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="send tensors") as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# Health and reflection


def status_name(status: int) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_health_checks_the_server_and_each_model(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def check(service: str) -> str:
            return status_name(health.Check(health_pb2.HealthCheckRequest(service=service)).status)

        assert [check(name) for name in ("", plug.service, "double")] == ["SERVING"] * 3
        served.door.served["double"].ready = False
        assert [check(name) for name in ("", "double", "broken")] == ["NOT_SERVING", "NOT_SERVING", "SERVING"]
        with pytest.raises(grpc.RpcError) as caught:
            check("nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_tells_every_change_and_the_end(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="double"), timeout=SECONDS)
        assert status_name(next(watch).status) == "SERVING"
        served.door.become("double", ready=False)
        assert status_name(next(watch).status) == "NOT_SERVING"
        served.door.become("double", ready=True)
        assert status_name(next(watch).status) == "SERVING"
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=SECONDS)
        assert status_name(next(unknown).status) == "SERVICE_UNKNOWN"
        stopping = served.stop(grace_s=SECONDS)
        assert [status_name(item.status) for item in watch] == ["NOT_SERVING"]
        stopping.result(SECONDS)


def test_reflection_lists_and_describes_the_services(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {plug.service, "grpc.health.v1.Health"} <= set(database.get_services())
        file = database.FindFileContainingSymbol(plug.service)
        assert "ModelInferRequest" in {message.name for message in file.message_type}
        assert database.FindFileContainingSymbol("grpc.health.v1.Health").package == "grpc.health.v1"


def test_reflection_answers_under_its_newer_name_too(served: Serving) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(served.address) as channel:
        call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        (answer,) = call(iter([request.SerializeToString()]))
    names = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response.service
    assert plug.service in {service.name for service in names}


# Keys, TLS, address


def test_every_method_but_health_needs_the_key() -> None:
    with serving(GrpcOptions(authorise=lambda value: value == "Bearer k")) as running:
        with grpc.insecure_channel(running.address) as channel:
            names = [f"/{plug.service}/{method.name}" for method in plug.methods()]
            names += ["/no.Such/Method", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
            for name in names:
                for metadata in ([], [("authorization", "Bearer wrong")]):
                    with pytest.raises(grpc.RpcError) as caught:
                        if "Stream" in name or "reflection" in name:
                            list(channel.stream_stream(name)(iter([b""]), metadata=metadata))
                        else:
                            channel.unary_unary(name)(b"", metadata=metadata)
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            assert list(reflection.ServerReflectionInfo(iter([request]), metadata=[("authorization", "Bearer k")]))
        with triton.InferenceServerClient(running.address) as client:
            for headers in ({"authorization": "Bearer k"}, {"x-api-key": "k"}):
                result = client.infer("double", [tensor(X)], headers=headers)
                np.testing.assert_array_equal(result.as_numpy("y"), X * 2)


def make_certificates(folder: Path) -> None:
    """A CA, and a server's and a client's certificate from it, for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")
    for name in ("server", "client"):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_real_client_infers_over_tls(certificates: Path, mutual: bool) -> None:
    options = GrpcOptions(
        tls_cert=str(certificates / "server.pem"),
        tls_key=str(certificates / "server.key"),
        tls_client_ca=str(certificates / "ca.pem") if mutual else None,
    )
    root = str(certificates / "ca.pem")
    own = {
        "private_key": str(certificates / "client.key"),
        "certificate_chain": str(certificates / "client.pem"),
    }
    with serving(options) as running:
        with triton.InferenceServerClient(running.address, ssl=True, root_certificates=root, **own) as client:
            np.testing.assert_array_equal(client.infer("double", [tensor(X)]).as_numpy("y"), X * 2)
        with triton.InferenceServerClient(running.address, ssl=True, root_certificates=root) as client:
            if mutual:
                with pytest.raises(InferenceServerException):
                    client.infer("double", [tensor(X)], client_timeout=3)
            else:
                client.infer("double", [tensor(X)])
        with triton.InferenceServerClient(running.address) as client, pytest.raises(InferenceServerException):
            client.infer("double", [tensor(X)], client_timeout=3)


async def test_tls_files_that_cannot_be_used_are_named(certificates: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for cert, key, text in (
        (str(empty), str(certificates / "server.key"), "empty.pem"),
        (str(tmp_path / "no.pem"), str(certificates / "server.key"), "no.pem"),
        (str(certificates / "server.pem"), None, "both"),
    ):
        listener = GrpcListener(NumpyDoor({}), [plug], GrpcOptions(tls_cert=cert, tls_key=key))
        with pytest.raises(InvalidInput, match=text):
            await listener.start("127.0.0.1", 0)


async def test_port_in_use_is_an_error_and_never_shared() -> None:
    async with on_this_loop() as (_, address):
        second = GrpcListener(NumpyDoor({}), [plug])
        port = address.rpartition(":")[2]
        with pytest.raises(InvalidInput, match=rf"grpc_port = {port}: Address already in use"):
            await second.start("127.0.0.1", int(port))


async def test_only_the_given_address_is_bound() -> None:
    async with on_this_loop() as (_, address):
        port = int(address.rpartition(":")[2])
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))  # fails when the listener holds the port on all addresses
            other.listen()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_address_of_the_sixth_internet_protocol_is_bound() -> None:
    listener = GrpcListener(NumpyDoor(models()), [plug])
    port = await listener.start("::1", 0)
    try:
        async with triton_aio.InferenceServerClient(f"[::1]:{port}") as client:
            assert await client.is_server_live()
    finally:
        await listener.stop(0.0)


# Stopping


def test_call_in_flight_is_answered_while_stopping_and_new_ones_are_refused(served: Serving) -> None:
    gated = served.door.served["gated"]
    own = [("grpc.use_local_subchannel_pool", 1)]  # or both channels would share one connection
    with grpc.insecure_channel(served.address) as channel, grpc.insecure_channel(served.address, own) as late:
        idle = channel.stream_stream(f"/{plug.service}/ModelStreamInfer")(iter(queue.Queue().get, None))
        call = channel.unary_unary(INFER).future(raw_request(X, "gated", id="kept"))
        served.until(lambda: gated.waiting == ["kept"])
        stopping = served.stop(grace_s=SECONDS)
        code, end = None, time.monotonic() + SECONDS
        while code is None:  # until the stop has begun, on the other thread, calls are answered
            assert time.monotonic() < end
            try:
                late.unary_unary(INFER)(raw_request(X), timeout=SECONDS)
            except grpc.RpcError as error:
                code = error.code()
        # grpcio itself ends what reaches it in the very moment of stopping with CANCELLED.
        assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not stopping.done()
        served.call(lambda: gated.gate.set())
        assert call.result(SECONDS)
        stopping.result(SECONDS)
        with pytest.raises(grpc.RpcError) as caught:
            next(idle)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_call_that_outlasts_the_grace_is_cancelled(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        call = channel.unary_unary(INFER).future(raw_request(X, "gated", id="stuck"))
        served.until(lambda: served.door.served["gated"].waiting == ["stuck"])
        served.stop(grace_s=0.1).result(SECONDS)
        assert call.exception(SECONDS).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    served.until(lambda: served.door.served["gated"].cancelled == ["stuck"])


def test_binary_metadata_does_no_harm(served: Serving) -> None:
    with grpc.insecure_channel(served.address) as channel:
        assert channel.unary_unary(INFER)(raw_request(X), metadata=[("x-trace", "1"), ("x-data-bin", b"\0\xff")])
