"""Values that are legal on the wire and that Python, numpy or an encoder further inside cannot hold."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from http_calls import Calls, json_of
from numpy_door import NumpyDoor, numpy_model

from penstock.core.errors import InvalidInput, NotFound, PenstockError, TooLarge
from penstock.core.json_body import read_object
from penstock.core.messages import NO_DEADLINE
from penstock.core.protobuf import parse
from penstock.core.tensor import parse_spec
from penstock.protocols import GrpcCall, GrpcInfer, GrpcRequest
from penstock.protocols.predict_http.table import read_csv
from penstock.protocols.v2_grpc import plug as v2_grpc
from penstock.protocols.v2_http import plug as v2_http
from penstock.runtime.options import ModelOptions
from penstock.runtime.recognise import recognise
from penstock.runtime.triton_config import options_from_config
from penstock.telemetry.logs import configure

HUGE = 10**400


def infer(**parameters: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    body = orjson.dumps({"inputs": [tensor], "parameters": dict.fromkeys(parameters, "?")}).decode()
    for value in parameters.values():
        body = body.replace('"?"', str(value), 1)
    return body.encode()


@pytest.fixture
def calls() -> Calls:
    model = numpy_model({"x": "f4[n]"}, {"x": "f4[n]"}, predict=lambda inputs, _: dict(inputs))
    return Calls([v2_http], NumpyDoor({"m": model}))


@pytest.mark.parametrize("timeout", [HUGE, -1, "1e400", "true", '"x"', 10**19])
async def test_timeout_that_no_clock_can_hold_is_refused(calls: Calls, timeout: object) -> None:
    answer = await calls("POST", "/v2/models/m/infer", infer(timeout=timeout))
    assert answer.status == 400, json_of(answer)


@pytest.mark.parametrize("timeout", [0, 1, 5_000_000, 1.5, '"7000000"'])
async def test_timeouts_of_every_kind_are_still_read(calls: Calls, timeout: object) -> None:
    assert (await calls("POST", "/v2/models/m/infer", infer(timeout=timeout))).status in (200, 504)


@pytest.mark.parametrize(
    "config",
    [
        {"dynamic_batching": {"max_queue_delay_microseconds": HUGE}},
        {"dynamic_batching": {"max_queue_delay_microseconds": str(HUGE)}},
        {"max_batch_size": HUGE},
        {"instance_group": [{"count": HUGE}]},
        {"version_policy": {"specific": {"versions": [HUGE]}}},
    ],
)
def test_config_with_a_number_beyond_64_bits_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        options_from_config(config, ModelOptions())


@pytest.mark.parametrize("level", [1 << 32, HUGE, -1])
def test_log_level_that_no_answer_can_hold_is_refused(level: int) -> None:
    logs = configure()
    with pytest.raises(InvalidInput):
        logs.update({"log_verbose_level": level})
    orjson.dumps(logs.settings())


@pytest.mark.parametrize(
    "text", ['{"\\ud800": 1}', '{"parameters": {"\\ud800": {"string_value": "\\udfff"}}}', '{"a": NaN}', "[" * 5000]
)
async def test_config_over_grpc_is_json_as_strict_as_over_http(text: str) -> None:
    method = next(method for method in v2_grpc.methods() if method.name == "RepositoryModelLoad")
    assert isinstance(method, GrpcCall)
    message: Any = v2_grpc._schema.message("inference.RepositoryModelLoadRequest")(model_name="m")
    message.parameters["config"].string_param = text
    door = NumpyDoor({})
    with pytest.raises(InvalidInput, match="config"):
        await method.handle(GrpcRequest(message.SerializeToString(), {}, NO_DEADLINE, 0.0), door)
    assert not door.loads


def test_error_never_repeats_more_than_a_page_of_what_was_sent() -> None:
    error = InvalidInput("no input '" + "x" * 1_000_000 + "'; the model takes 'y'")
    assert len(error.message) < 2000
    assert error.message.startswith("no input 'xxx") and error.message.endswith("the model takes 'y'")
    assert str(error) == error.message


@pytest.mark.parametrize("kind", [InvalidInput, NotFound])
def test_error_can_be_sent_whatever_is_in_it(kind: type[PenstockError]) -> None:
    assert kind("a \ud800 half").message.encode() == b"a ? half"
    assert kind("größer 模型").message == "größer 模型"


@pytest.mark.parametrize(
    "text",
    ["max_batch_size = " + "9" * 5000, "batch_delay_s = " + "9" * 400, f'inputs = {{x = "f4[{"9" * 5000}]"}}', "x = " + "[" * 3000, "\udcff"],
    ids=["digits", "seconds", "axis", "nesting", "no text"],
)  # fmt: skip
def test_settings_of_a_model_that_nothing_can_hold_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.toml").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InvalidInput):
        for options in recognise(str(tmp_path)):
            for declaration in options.inputs.values():
                parse_spec("x", declaration)


SCHEMA = v2_grpc._schema
INFER = SCHEMA.message("inference.ModelInferRequest")


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x2a\x00" * 200_000,  # inputs
        b"\x32\x00" * 200_000,  # outputs
        b"\x22\x00" * 200_000,  # parameters
        b"\x2a\x90\xa1\x0f" + b"\x22\x00" * 124_999 + b"\x22\x00",  # parameters of one input
        b"\x0b" + b"\x2a\x00" * 200_000,  # behind the beginning of a group
    ],
    ids=["inputs", "outputs", "parameters", "of an input", "group"],
)  # fmt: skip
def test_message_of_countless_parts_is_refused_before_it_is_made(bomb: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"parts|wire type"):
        parse(INFER, bomb + bytes([0x0A, 0]) * 40_000)


def test_large_messages_of_few_parts_are_read() -> None:
    message: Any = INFER(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[200_000])
    tensor.contents.fp32_contents.extend([1.5] * 200_000)
    texts = message.inputs.add(name="t", datatype="BYTES", shape=[150_000])
    texts.contents.bytes_contents.extend([b"ab"] * 150_000)  # elements are no parts
    for index in range(1000):
        message.parameters[f"k{index}"].int64_param = index
    assert parse(INFER, message.SerializeToString()) == message


async def test_shape_of_a_million_axes_is_refused() -> None:
    message: Any = INFER(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=[1] * 1_000_000)
    message.raw_input_contents.append(b"\0" * 4)
    method = next(method for method in v2_grpc.methods() if method.name == "ModelInfer")
    assert isinstance(method, GrpcInfer)
    door = NumpyDoor({"m": numpy_model({"x": "f4[n]"}, {"x": "f4[n]"})})
    with pytest.raises(InvalidInput, match="1000000 axes"):
        method.decode(GrpcRequest(message.SerializeToString(), {}, NO_DEADLINE, 0.0), door)


@pytest.mark.parametrize("kind", [b"[],", b"{},", b'{"a":{}},'])
def test_json_that_would_fill_the_memory_is_refused_before_it_is_read(kind: bytes) -> None:
    body = b'{"x":[' + kind * (36_000_000 // len(kind)) + b"0]}"
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="1024 MiB"):
            read_object(body)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_long_json_of_numbers_is_read() -> None:
    assert read_object(b'{"x":[' + b"0.5," * 2_500_000 + b"0]}")["x"][-2:] == [0.5, 0]


@pytest.mark.parametrize("row", ["1\n", "a\r\n", "1\r", ",\n", ",,,,,,,"])
def test_csv_that_would_fill_the_memory_is_refused_before_it_is_read(row: str) -> None:
    text = row * (30_000_000 // len(row))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="1024 MiB"):
            read_csv(text, [parse_spec("x", "f4[n, m]")])
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_long_csv_is_read() -> None:
    assert read_csv("1,2\n" * 100_000, [parse_spec("x", "f4[n, 2]")])["x"].shape == (100_000, 2)
