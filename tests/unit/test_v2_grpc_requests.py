"""What V2 requests over gRPC become, and which are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from v2_grpc_messages import decode, message

from penstock.core.errors import InvalidInput, NotFound, TooLarge, Unsupported
from penstock.core.messages import NO_DEADLINE
from penstock.protocols import Limits


def test_raw_input_is_decoded_without_losing_names_ids_or_versions() -> None:
    values = np.arange(6, dtype="f4").reshape(2, 3)
    request = decode(message(values, id="7", model_version="1"), deadline=123.0).request
    assert (request.model, request.version, request.id, request.deadline) == ("echo", "1", "7", 123.0)
    assert request.timings.received == 100.0
    np.testing.assert_array_equal(request.inputs["x"], values)


def test_large_raw_input_is_a_view_of_the_message_or_aligned_copy_of_it() -> None:
    values = np.random.default_rng(1).random((40, 1000), dtype="f4")
    array = decode(message(values)).request.inputs["x"]
    np.testing.assert_array_equal(array, values)
    assert array.flags.aligned


def test_typed_contents_are_decoded() -> None:
    request = message()
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1.5, 2.5])
    assert decode(request).request.inputs["x"].tolist() == [[1.5, 2.5]]


def test_priority_is_read_as_unsigned_or_signed_and_does_not_reach_the_model() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["priority"].uint64_param = 1
    request.parameters["temperature"].double_param = 0.5
    decoded = decode(request).request
    assert (decoded.priority, decoded.parameters) == (1, {"temperature": 0.5})
    request.parameters["priority"].int64_param = 2
    assert decode(request).request.priority == 2


def test_timeout_parameter_is_microseconds_and_never_extends_the_deadline() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["timeout"].int64_param = 2_000_000
    assert decode(request).request.deadline == pytest.approx(102.0)
    assert decode(request, deadline=101.0).request.deadline == 101.0
    request.parameters["timeout"].int64_param = 0
    assert decode(request).request.deadline == NO_DEADLINE


def test_reserved_parameters_do_not_reach_the_model_and_sequence_parameters_do() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["binary_data_output"].bool_param = True
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["sequence_id"].string_param = "s"
    assert decode(request).request.parameters == {"sequence_id": "s"}


def with_parameter(key: str, field: str, value: Any) -> Any:
    request = message(np.zeros((1, 1), "f4"))
    setattr(request.parameters[key], field, value)
    return request


def with_input(datatype: str, shape: list[int], raw: bytes | None = None, **contents: list[Any]) -> Any:
    request = message()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return request


def twice() -> Any:
    request = message(np.zeros((1, 1), "f4"))
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(b"\0" * 4)
    return request


def output_twice() -> Any:
    request = message(np.zeros((1, 1), "f4"))
    request.outputs.add(name="y")
    request.outputs.add(name="y")
    return request


def no_value() -> Any:
    request = message(np.zeros((1, 1), "f4"))
    request.parameters["empty"].SetInParent()
    return request


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"\xff\xff", "cannot be read"),
        (with_input("FP32", [1, 1], b"\0" * 4, fp32_contents=[1.0]), "typed contents beside raw"),
        (with_input("FP16", [1], bytes_contents=[b"xx"]), "FP16 has no typed contents"),
        (with_input("BF16", [1]), "BF16 has no typed contents"),
        (with_input("FP31", [1], b"1234"), "unknown datatype"),
        (with_input("FP31", [1]), "unknown datatype"),
        (with_input("FP32", [2], b"1234"), "4 bytes of data"),
        (with_input("FP32", [-1], b"1234"), "negative axis"),
        (with_input("FP32", [-1], fp32_contents=[1.0]), "negative axis"),
        (with_input("FP32", [2], fp32_contents=[1.0]), "has 1 values"),
        (with_input("FP32", [1], fp64_contents=[1.0]), "belong in fp32_contents"),
        (with_input("FP32", [0, 1 << 62, 1 << 62], b""), "impossible shape"),
        (with_input("FP32", [0, 1 << 62, 1 << 62]), "impossible shape"),
        (with_input("FP32", [1] * 65, b"1234"), "65 axes"),
        (with_input("FP32", [1] * 65, fp32_contents=[1.0]), "65 axes"),
        (with_input("INT8", [1], int_contents=[300]), "INT8 cannot hold"),
        (with_input("UINT8", [1], uint_contents=[256]), "UINT8 cannot hold"),
        (with_input("BYTES", [1 << 60], b""), "BYTES data holds 0"),
        (with_input("BYTES", [1], b"\xff\xff\xff\xff"), "claims"),
        (twice(), "there twice"),
        (output_twice(), "asked for twice"),
        (no_value(), "has no value"),
        (with_parameter("priority", "string_param", "1"), "whole number"),
        (with_parameter("priority", "int64_param", -1), "whole number"),
        (with_parameter("timeout", "bool_param", True), "whole number"),
        (with_parameter("triton_enable_empty_final_response", "int64_param", 1), "must be a boolean"),
    ],
)
def test_malformed_request_blames_the_caller(request_: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        decode(request_)


def test_as_many_raw_contents_as_inputs_are_needed() -> None:
    request = message(np.zeros((1, 1), "f4"))
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidInput, match="2 items for 1 inputs"):
        decode(request)


@pytest.mark.parametrize("typed", [True, False])
def test_tensor_beyond_the_limit_is_too_large(typed: bool) -> None:
    request = with_input("FP32", [100], fp32_contents=[0.0] * 100) if typed else with_input("FP32", [100], b"\0" * 400)
    with pytest.raises(TooLarge, match="400 bytes"):
        decode(request, limits=Limits(tensor_bytes=399))


def test_unknown_model_and_version_are_not_found() -> None:
    for fields in ({"model_name": "nobody"}, {"model_version": "9"}):
        with pytest.raises(NotFound):
            decode(message(np.zeros((1, 1), "f4"), **fields))


def test_shared_memory_is_refused_for_inputs_and_outputs() -> None:
    request = message()
    request.inputs.add(name="x", datatype="FP32", shape=[1]).parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode(request)
    request = message(np.zeros((1, 1), "f4"))
    request.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode(request)


def test_model_that_streams_refuses_the_unary_call() -> None:
    request = service_pb2.ModelInferRequest(model_name="counter")
    with pytest.raises(Unsupported, match="ModelStreamInfer"):
        decode(request)
