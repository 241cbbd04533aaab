"""Answers and streams of V2 over gRPC, and the messages' framing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_door import numpy_model
from tritonclient.grpc import service_pb2
from v2_grpc_messages import METHODS, decode, decode_stream, door_of, echo, items, message, wire

from penstock.core.errors import InvalidInput, NotFound
from penstock.core.messages import Response
from penstock.core.protobuf import length_prefix, take_field
from penstock.core.tensor import TensorSpec
from penstock.protocols import GrpcStream


def test_answer_is_raw_in_the_order_of_the_outputs() -> None:
    outputs = {"b": np.array([[1, 2]], "i4"), "a": np.array([[b"text", b""]], dtype=object)}
    exchange = decode(message(np.zeros((1, 1), "f4"), id="42"))
    answer = service_pb2.ModelInferResponse.FromString(exchange.encode(Response("echo", "1", outputs)))
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("b", "INT32", [1, 2]),
        ("a", "BYTES", [1, 2]),
    ]
    assert list(answer.raw_output_contents) == [b"\1\0\0\0\2\0\0\0", b"\4\0\0\0text\0\0\0\0"]
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "42")


def test_answers_of_a_bf16_output_take_two_bytes_each() -> None:
    door = door_of(half=numpy_model({"x": "f4[n, k]"}, {"y": "bf2[n, k]"}, predict=echo))
    exchange = decode(message(np.zeros((1, 1), "f4"), model_name="half"), door)
    answer = service_pb2.ModelInferResponse.FromString(
        exchange.encode(Response("half", "1", {"y": np.array([[1.0]], "f4")}))
    )
    assert (answer.outputs[0].datatype, answer.raw_output_contents[0]) == ("BF16", b"\x80\x3f")


def test_response_parameters_keep_their_types() -> None:
    values: dict[str, bool | int | float | str] = {"b": True, "i": -1, "u": 2**63, "f": 0.5, "s": "x"}
    exchange = decode(message(np.zeros((1, 1), "f4")))
    answer = service_pb2.ModelInferResponse.FromString(exchange.encode(Response("echo", "1", {}, parameters=values)))
    assert {key: value.WhichOneof("parameter_choice") for key, value in answer.parameters.items()} == {
        "b": "bool_param", "i": "int64_param", "u": "uint64_param", "f": "double_param", "s": "string_param",
    }  # fmt: skip


def test_classification_gives_text_with_labels() -> None:
    spec = TensorSpec("y", "FP32", (-1, -1), labels=("cat", "dog", "cow"))
    door = door_of(pets=numpy_model({"x": "f4[n, k]"}, {"y": spec}, predict=echo))
    request = message(np.zeros((1, 3), "f4"), model_name="pets")
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    exchange = decode(request, door)
    answer = service_pb2.ModelInferResponse.FromString(
        exchange.encode(Response("pets", "1", {"y": np.array([[0.1, 0.2, 0.7]], "f4")}))
    )
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 2])
    assert answer.raw_output_contents[0] == b"\x0e\0\0\x000.700000:2:cow\x0e\0\0\x000.200000:1:dog"


def test_one_answer_of_a_plain_model_is_marked_as_final() -> None:
    exchange = decode_stream(message(np.zeros((1, 1), "f4"), id="3"))
    answer = items(exchange.encode_item(Response("echo", "1", {"y": np.zeros((300, 300), "f4")})))
    assert answer.error_message == "" and answer.infer_response.id == "3"
    assert answer.infer_response.parameters["triton_final_response"].bool_param is True
    assert len(answer.infer_response.raw_output_contents[0]) == 360_000
    assert exchange.encode_end() is None


@pytest.mark.parametrize("asked", [True, False])
def test_empty_final_answer_of_a_stream_is_sent_only_when_asked_for(asked: bool) -> None:
    request = service_pb2.ModelInferRequest(model_name="counter", id="3")
    request.inputs.add(name="n", datatype="INT32", shape=[1, 1]).contents.int_contents.append(2)
    if asked:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    exchange = decode_stream(request)
    item = items(exchange.encode_item(Response("counter", "1", {"i": np.zeros((1, 1), "i4")}))).infer_response
    assert item.parameters["triton_final_response"].bool_param is False
    end = exchange.encode_end()
    if not asked:
        assert end is None
        return
    last = items(end).infer_response
    assert (last.id, last.model_name, len(last.outputs)) == ("3", "counter", 0)
    assert last.parameters["triton_final_response"].bool_param is True


def test_stream_error_is_a_message_with_the_requests_id_or_a_status_when_asked_for() -> None:
    request = message(np.zeros((1, 1), "f4"), id="3")
    answer = items(decode_stream(request).encode_error(InvalidInput("no")))
    assert (answer.error_message, answer.infer_response.id) == ("no", "3")
    assert decode_stream(request, triton_grpc_error="true").encode_error(InvalidInput("no")) is None


def test_refused_stream_message_is_answered_with_its_id() -> None:
    method = METHODS["ModelStreamInfer"]
    assert isinstance(method, GrpcStream)
    answer = items(method.encode_error(NotFound("who?"), wire(message(id="9", model_name="nobody"))))
    assert (answer.error_message, answer.infer_response.id) == ("who?", "9")
    assert items(method.encode_error(InvalidInput("bad"), wire(b"\xff"))).error_message == "bad"
    assert method.encode_error(NotFound("who?"), wire(b"\xff", triton_grpc_error="true")) is None


# Taking a field out of a message without parsing it


def test_taken_field_and_the_rest_make_up_the_message() -> None:
    request = message(np.ones((2, 2), "f4"), id="5", model_version="3")
    request.raw_input_contents.append(b"more")
    taken = take_field(request.SerializeToString(), 7)
    assert taken is not None
    rest, contents = taken
    assert [bytes(item) for item in contents] == list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    assert service_pb2.ModelInferRequest.FromString(rest) == request


@pytest.mark.parametrize("data", [b"\x3a\x05abc", b"\x3a", b"\x80" * 12, b"\x3b", b"\x09abc", b"\x08" * 9000])
def test_unusual_bytes_are_left_to_the_parser(data: bytes) -> None:
    assert take_field(data, 7) is None


@pytest.mark.parametrize("length", [0, 1, 127, 128, 1 << 20, 1 << 35])
def test_length_prefix_is_read_back(length: int) -> None:
    prefix = length_prefix(17, length)
    assert prefix[:2] == b"\x8a\x01"
    value = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(prefix[2:]))
    assert value == length
