"""Unary inference over gRPC with the real client: datatypes, sizes, compression, errors."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_serving import INFER, Serving, X, models, raw_request, serving, tensor
from numpy_door import NumpyDoor
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
from penstock.protocols.v2_grpc import plug
from penstock.runtime.listeners.grpc import GrpcOptions


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
