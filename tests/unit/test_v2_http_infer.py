from __future__ import annotations

import gzip
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from http_calls import Calls, body_of, header_of, json_of
from numpy_door import NumpyDoor, numpy_model
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from penstock.core.messages import NO_DEADLINE
from penstock.core.tensor import TensorSpec, bf16_to_wire
from penstock.protocols import HttpResponse, Limits
from penstock.protocols.v2_http import plug

INFER = "/v2/models/{}/infer"


def same(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def scores(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": np.array([[0.1, 0.7, 0.2]] * len(inputs["x"]), dtype="f4"), "z": inputs["x"].sum(axis=1, dtype="f4")}


def model(kind: str, shape: str = "[n, k]") -> Any:
    return numpy_model({"x": kind + shape}, {"y": kind + shape}, predict=same)


@pytest.fixture
def door() -> NumpyDoor:
    labelled = TensorSpec("y", "FP32", (-1, 3), labels=("ant", "bee", "cat"))
    return NumpyDoor(
        {
            "f4": model("f4"),
            "i1": model("i1"),
            "u8": model("u8"),
            "text": model("str"),
            "flag": model("bool"),
            "half": model("f2"),
            "brain": model("bf2"),
            "row": model("f4", "[n, 4]"),
            "word": model("str", "[n]"),
            "scores": numpy_model({"x": "f4[n, k]"}, {"y": labelled, "z": "f4[n]"}, predict=scores),
        }
    )


@pytest.fixture
def call(door: NumpyDoor) -> Calls:
    return Calls([plug], door)


def triton(
    *inputs: InferInput, outputs: list[InferRequestedOutput] | None = None, **options: Any
) -> tuple[bytes, dict[str, str]]:
    """The bytes that the real client sends."""
    names = ("request_id", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout")
    defaults: dict[str, Any] = {"request_id": "", "sequence_id": 0, "priority": 0, "timeout": None}
    settings = {name: options.get(name, defaults.get(name, False)) for name in names}
    body, json_size = _get_inference_request(
        inputs, outputs=outputs, custom_parameters=options.get("parameters"), **settings
    )
    return body, {} if json_size is None else {"Inference-Header-Content-Length": str(json_size)}


def tensor(array: np.ndarray, datatype: str, *, binary: bool, name: str = "x") -> InferInput:
    item = InferInput(name, list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=binary)
    return item


def result(response: HttpResponse) -> InferResult:
    """What the real client makes of the answer."""
    assert response.status == 200, body_of(response)
    length = header_of(response, "Inference-Header-Content-Length")
    return InferResult.from_response_body(
        body_of(response),
        header_length=None if length is None else int(length),
        content_encoding=header_of(response, "Content-Encoding"),
    )


def body(data: Any, datatype: str = "FP32", shape: Any = (1, 2), **more: Any) -> bytes:
    return orjson.dumps(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]} | more,
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


X = np.array([[1.5, -2.0], [0.25, 3.0]], dtype="f4")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_the_four_json_and_binary_combinations_give_the_same_tensor(
    call: Calls, binary_in: bool, binary_out: bool
) -> None:
    request, headers = triton(
        tensor(X, "FP32", binary=binary_in), outputs=[InferRequestedOutput("y", binary_data=binary_out)]
    )
    response = await call("POST", INFER.format("f4"), request, headers)
    assert (header_of(response, "Inference-Header-Content-Length") is not None) == binary_out
    np.testing.assert_array_equal(result(response).as_numpy("y"), X)


async def test_the_clients_default_call_is_answered_in_binary(call: Calls) -> None:
    request, headers = triton(tensor(X, "FP32", binary=True), request_id="abc")
    response = await call("POST", INFER.format("f4"), request, headers)
    answer = result(response)
    np.testing.assert_array_equal(answer.as_numpy("y"), X)
    assert answer.get_response()["id"] == "abc"
    assert response.content_type == "application/octet-stream"


async def test_the_json_answer_has_the_documented_keys_and_no_nulls(call: Calls) -> None:
    response = await call("POST", INFER.format("f4"), body([1, 2.5]))
    assert json_of(response) == {
        "model_name": "f4",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.5]}],
    }


async def test_binary_outputs_are_parts_that_share_the_models_memory(call: Calls) -> None:
    request, headers = triton(tensor(X, "FP32", binary=True))
    response = await call("POST", INFER.format("f4"), request, headers)
    assert isinstance(response.body, list)
    assert np.shares_memory(np.frombuffer(response.body[1], "f4"), np.frombuffer(request, "u1"))


@pytest.mark.parametrize(
    ("name", "datatype", "array"),
    [
        ("text", "BYTES", np.array([[b"\xff\x00", "né".encode()]], dtype=object)),
        ("half", "FP16", np.array([[1.5, -0.25]], dtype="f2")),
        ("flag", "BOOL", np.array([[True, False]])),
        ("u8", "UINT64", np.array([[2**64 - 1, 0]], dtype="u8")),
        ("i1", "INT8", np.array([[-128, 127]], dtype="i1")),
    ],
)
async def test_every_kind_of_tensor_comes_back_in_binary(
    call: Calls, name: str, datatype: str, array: np.ndarray
) -> None:
    request, headers = triton(tensor(array, datatype, binary=True))
    answer = result(await call("POST", INFER.format(name), request, headers))
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


async def test_bf16_is_two_bytes_on_the_wire_and_float32_in_the_model(call: Calls, door: NumpyDoor) -> None:
    item = {"name": "x", "datatype": "BF16", "shape": [1, 2], "parameters": {"binary_data_size": 4}}
    head = orjson.dumps({"inputs": [item], "parameters": {"binary_data_output": True}})
    data = bf16_to_wire(np.array([1.5, -2.0], dtype="f4"))
    response = await call(
        "POST", INFER.format("brain"), head + data, {"Inference-Header-Content-Length": str(len(head))}
    )
    assert door.served["brain"].seen[0].inputs["x"].dtype == np.float32
    assert body_of(response).endswith(data)
    assert result(response).get_output("y")["datatype"] == "BF16"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_the_header_length_counts_the_json_before_compression(call: Calls, coding: str) -> None:
    request, headers = triton(tensor(X, "FP32", binary=True))
    packed = gzip.compress(request) if coding == "gzip" else zlib.compress(request)
    response = await call("POST", INFER.format("f4"), packed, headers | {"Content-Encoding": coding})
    np.testing.assert_array_equal(result(response).as_numpy("y"), X)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_an_answer_is_compressed_when_its_client_asks(call: Calls, coding: str) -> None:
    large = np.zeros((1, 4096), dtype="f4")
    request, headers = triton(tensor(large, "FP32", binary=True))
    response = await call("POST", INFER.format("f4"), request, headers | {"Accept-Encoding": coding})
    assert header_of(response, "Content-Encoding") == coding
    assert len(body_of(response)) < large.nbytes // 4
    np.testing.assert_array_equal(result(response).as_numpy("y"), large)


async def test_small_answers_to_a_librarys_usual_header_are_not_compressed(call: Calls) -> None:
    request, headers = triton(tensor(np.zeros((1, 4096), "f4"), "FP32", binary=True))
    response = await call("POST", INFER.format("f4"), request, headers | {"Accept-Encoding": "gzip, deflate, br"})
    assert header_of(response, "Content-Encoding") is None


async def test_a_decompression_bomb_is_refused_at_the_limit(door: NumpyDoor) -> None:
    call = Calls([plug], door, Limits(decompressed_bytes=1 << 20))
    bomb = gzip.compress(b" " * (50 << 20))
    response = await call("POST", INFER.format("f4"), bomb, {"Content-Encoding": "gzip"})
    assert response.status == 413


async def test_an_unknown_content_encoding_is_501_and_says_what_is_known(call: Calls) -> None:
    response = await call("POST", INFER.format("f4"), b"x", {"Content-Encoding": "br"})
    assert response.status == 501
    assert header_of(response, "Accept-Encoding") == "gzip, deflate"


async def test_a_raw_request_is_one_row_of_the_one_input(call: Calls, door: NumpyDoor) -> None:
    row = np.arange(4, dtype="f4")
    response = await call("POST", INFER.format("row"), row.tobytes(), {"Inference-Header-Content-Length": "0"})
    np.testing.assert_array_equal(result(response).as_numpy("y"), [row])
    response = await call("POST", INFER.format("f4"), row.tobytes(), {"Inference-Header-Content-Length": "0"})
    assert result(response).as_numpy("y").shape == (1, 4)
    response = await call("POST", INFER.format("word"), b"\x00any bytes", {"Inference-Header-Content-Length": "0"})
    assert result(response).as_numpy("y").tolist() == [b"\x00any bytes"]


async def test_a_raw_request_that_is_no_whole_row_is_refused(call: Calls) -> None:
    for name, data in (("row", b"123"), ("f4", b"123456"), ("scores", b"\0" * 7)):
        response = await call("POST", INFER.format(name), data, {"Inference-Header-Content-Length": "0"})
        assert response.status == 400, name


async def test_classification_gives_value_index_and_label(call: Calls) -> None:
    outputs = [InferRequestedOutput("y", class_count=2), InferRequestedOutput("z", binary_data=False)]
    request, headers = triton(tensor(X, "FP32", binary=True), outputs=outputs)
    answer = result(await call("POST", INFER.format("scores"), request, headers))
    assert answer.as_numpy("y").tolist() == [[b"0.700000:1:bee", b"0.200000:2:cat"]] * 2
    np.testing.assert_array_equal(answer.as_numpy("z"), [-0.5, 3.25])


async def test_only_the_outputs_asked_for_are_answered(call: Calls) -> None:
    response = await call("POST", INFER.format("scores"), body([1, 2], outputs=[{"name": "z"}]))
    assert [output["name"] for output in json_of(response)["outputs"]] == ["z"]


async def test_parameters_are_the_servers_or_the_models(call: Calls, door: NumpyDoor) -> None:
    request, headers = triton(
        tensor(X, "FP32", binary=True), priority=2, timeout=250_000, sequence_id=7, sequence_start=True,
        parameters={"temperature": 0.5, "mode": "fast"},
    )  # fmt: skip
    found, http = call.request("POST", INFER.format("f4"), request, headers)
    decoded = found.route.decode(http, door).request  # type: ignore[union-attr]
    assert decoded.deadline == pytest.approx(http.received + 0.25)
    assert decoded.priority == 2
    assert decoded.parameters == {
        "temperature": 0.5, "mode": "fast", "sequence_id": 7, "sequence_start": True, "sequence_end": False,
    }  # fmt: skip


async def test_nulls_stand_for_what_is_not_given(call: Calls, door: NumpyDoor) -> None:
    request = (
        b'{"id":null,"parameters":{"timeout":null,"a":null},"outputs":null,"inputs":[{"name":"x","shape":[1,2],'
        b'"datatype":"FP32","data":[1,2],"parameters":null}]}'
    )
    response = await call("POST", INFER.format("f4"), request)
    assert response.status == 200
    seen = door.served["f4"].seen[0]
    assert (seen.deadline, seen.parameters, seen.id) == (NO_DEADLINE, {}, "")


def item(datatype: str, shape: str, rest: str) -> str:
    return f'{{"name":"x","datatype":"{datatype}","shape":{shape},{rest}}}'


def raw(*items: str) -> bytes:
    """JSON that no careful writer would write."""
    return f'{{"inputs":[{",".join(items)}]}}'.encode()


NOT_FITTING = {
    "a float for an integer": ("i1", body([1.5, 2], "INT8")),
    "a whole float for an integer": ("i1", raw(item("INT8", "[1,2]", '"data":[1.0,2]'))),
    "true for an integer": ("i1", body([True, 2], "INT8")),
    "one for true": ("flag", body([1, 0], "BOOL")),
    "an integer out of range": ("i1", body([128, 0], "INT8")),
    "an integer beyond 64 bits": ("u8", raw(item("UINT64", "[1,1]", '"data":[99999999999999999999]'))),
    "a negative unsigned": ("u8", body([-1, 0], "UINT64")),
    "a float out of range": ("f4", body([1e39, 0])),
    "true for a float": ("f4", body([True, 0])),
    "text for a float": ("f4", body(["1", 0])),
    "null for a float": ("f4", body([None, 0])),
    "a NaN token": ("f4", raw(item("FP32", "[1,2]", '"data":[NaN,1]'))),
    "a number for a text": ("text", body([1, "a"], "BYTES")),
    "too few elements": ("f4", body([1])),
    "too many elements": ("f4", body([1, 2, 3])),
    "ragged nesting": ("f4", body([[1, 2], [3]], shape=[2, 2])),
    "nesting deeper than the shape": ("f4", body([[[1], [2]]], shape=[1, 2])),
    "another nesting than the shape": ("f4", body([[1, 2, 3], [4, 5, 6]], shape=[3, 2])),
    "a negative axis": ("f4", body([1, 2], shape=[-1, -2])),
    "a fractional axis": ("f4", body([1, 2], shape=[1.5, 2])),
    "an unknown datatype": ("f4", body([1, 2], "FLOAT")),
    "FP16 in JSON": ("half", body([1, 2], "FP16")),
    "BF16 in JSON": ("brain", body([1, 2], "BF16")),
    "no data": ("f4", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2]}]}'),
    "an input twice": ("scores", raw(*[item("FP32", "[0]", '"data":[]')] * 2)),
    "an unknown input": ("f4", b'{"inputs":[{"name":"q","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'),
    "an unknown output": ("f4", body([1, 2], outputs=[{"name": "q"}])),
    "an output twice": ("f4", body([1, 2], outputs=[{"name": "y"}, {"name": "y"}])),
    "a nested parameter": ("f4", body([1, 2], parameters={"a": {"b": 1}})),
    "a negative timeout": ("f4", body([1, 2], parameters={"timeout": -1})),
    "a wordy priority": ("f4", body([1, 2], parameters={"priority": "high"})),
    "a number as id": ("f4", body([1, 2], id=7)),
    "half a body": ("f4", body([1, 2])[:-3]),
    "text behind the JSON": ("f4", body([1, 2]) + b"x"),
    "no JSON": ("f4", b"\xff\xfe"),
    "an empty body": ("f4", b""),
    "a list": ("f4", b"[]"),
    "text that is no UTF-8": ("text", b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1,1],"data":["\xff"]}]}'),
    "a hundred thousand brackets": ("f4", b'{"inputs":' + b"[" * 100_000),
    "deep data": ("f4", raw(item("FP32", "[1,2]", '"data":' + "[" * 3000 + "]" * 3000))),
    "deep unknown key": ("f4", b'{"zz":' + b"[" * 3000 + b"]" * 3000 + b',"inputs":[]}'),
    "binary without the header": ("f4", raw(item("FP32", "[1,2]", '"parameters":{"binary_data_size":8}'))),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_FITTING)
async def test_what_does_not_fit_is_400_with_a_reason(call: Calls, case: str) -> None:
    name, request = NOT_FITTING[case]
    response = await call("POST", INFER.format(name), request)
    assert response.status == 400, body_of(response)
    assert len(json_of(response)["error"]) > 10


async def test_the_reason_names_the_input_and_what_is_allowed(call: Calls) -> None:
    error = json_of(await call("POST", INFER.format("i1"), body([300, 0], "INT8")))["error"]
    assert error == "input 'x' has a number out of the range of INT8"
    error = json_of(await call("POST", INFER.format("f4"), body([1, 2, 3])))["error"]
    assert error == "input 'x' has 3 elements, its shape [1, 2] asks for 2"


@pytest.mark.parametrize("length", ["-1", "abc", "999", "9" * 5000, "", "1_0", "²"])
async def test_a_wrong_header_length_is_400(call: Calls, length: str) -> None:
    response = await call("POST", INFER.format("f4"), body([1, 2]), {"Inference-Header-Content-Length": length})
    assert response.status == 400


@pytest.mark.parametrize(
    ("size", "data"),
    [(8, b"1234"), (4, b"12345678"), (-8, b"12345678"), (True, b"1"), ("8", b"12345678"), (12, b"123456789012")],
)
async def test_binary_sizes_must_add_up(call: Calls, size: object, data: bytes) -> None:
    item = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    head = orjson.dumps({"inputs": [item]})
    response = await call("POST", INFER.format("f4"), head + data, {"Inference-Header-Content-Length": str(len(head))})
    assert response.status == 400


@pytest.mark.parametrize("shape", [[1 << 40], [0, 1 << 62, 1 << 62], [1] * 65, [1 << 70]])
async def test_no_shape_makes_the_server_allocate(call: Calls, shape: list[int]) -> None:
    request = body([], shape=shape) if max(shape) < 1 << 63 else body([]).replace(b"[1,2]", b"[1180591620717411303424]")
    response = await call("POST", INFER.format("f4"), request)
    assert response.status in (400, 413)


async def test_shared_memory_is_refused_with_the_reason(call: Calls) -> None:
    item = InferInput("x", [1, 2], "FP32")
    item.set_shared_memory("region", 8)
    request, headers = triton(item)
    response = await call("POST", INFER.format("f4"), request, headers)
    assert response.status == 501
    assert "shared-memory" in json_of(response)["error"]


async def test_outputs_that_json_cannot_hold_say_how_to_get_them(call: Calls) -> None:
    request, headers = triton(
        tensor(np.array([[1]], "f2"), "FP16", binary=True), outputs=[InferRequestedOutput("y", binary_data=False)]
    )
    response = await call("POST", INFER.format("half"), request, headers)
    assert response.status == 400 and "binary_data" in json_of(response)["error"]
    request, headers = triton(
        tensor(np.array([[b"\xff"]], object), "BYTES", binary=True),
        outputs=[InferRequestedOutput("y", binary_data=False)],
    )
    response = await call("POST", INFER.format("text"), request, headers)
    assert response.status == 400 and "binary" in json_of(response)["error"]


async def test_an_unknown_model_is_404_and_one_that_is_not_ready_503(call: Calls, door: NumpyDoor) -> None:
    assert (await call("POST", INFER.format("nobody"), body([1, 2]))).status == 404
    assert (await call("POST", "/v2/models/f4/versions/9/infer", body([1, 2]))).status == 404
    assert (await call("POST", "/v2/models/f4/versions/1/infer", body([1, 2]))).status == 200
    door.served["f4"].ready = False
    response = await call("POST", INFER.format("f4"), body([1, 2]))
    assert (response.status, header_of(response, "Retry-After")) == (503, "2")
