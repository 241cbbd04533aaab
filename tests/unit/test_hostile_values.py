"""Values that are legal on the wire and that Python, numpy or an encoder further inside cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from http_calls import Calls, json_of
from numpy_door import NumpyDoor, numpy_model

from penstock.core.errors import InvalidInput, NotFound, PenstockError
from penstock.core.messages import NO_DEADLINE
from penstock.core.tensor import parse_spec
from penstock.protocols import GrpcCall, GrpcRequest
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
