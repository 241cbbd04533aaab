from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from http_calls import Calls, json_of
from numpy_door import NumpyDoor, numpy_model

from penstock.protocols.v1_http import plug


def person(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"name": inputs["name"], "next": inputs["age"] + 1}


@pytest.fixture
def door() -> NumpyDoor:
    return NumpyDoor(
        {
            "sum": numpy_model({"x": "f4[n, 2]"}, {"y": "f4[n]"}, predict=lambda inputs, _: {"y": inputs["x"].sum(1)}),
            "column": numpy_model({"x": "i8[n, 1]"}, {"y": "i8[n, 1]"}, predict=lambda inputs, _: {"y": inputs["x"]}),
            "people": numpy_model(
                {"name": "str[n]", "age": "i4[n]"}, {"name": "str[n]", "next": "i4[n]"}, predict=person
            ),
            "bytes": numpy_model({"b": "bytes[n]"}, {"b": "bytes[n]"}, predict=lambda inputs, _: {"b": inputs["b"]}),
        }
    )


@pytest.fixture
def call(door: NumpyDoor) -> Calls:
    return Calls([plug], door)


async def predict(call: Calls, model: str, **body: Any) -> Any:
    response = await call("POST", f"/v1/models/{model}:predict", orjson.dumps(body))
    return json_of(response) if response.status == 200 else response.status


async def test_instances_are_rows(call: Calls) -> None:
    assert await predict(call, "sum", instances=[[1, 2], [3, 4.5]]) == {"predictions": [3.0, 7.5]}
    assert await predict(call, "sum", instances=[{"x": [1, 2]}]) == {"predictions": [3.0]}
    assert await predict(call, "column", instances=[5, 6]) == {"predictions": [[5], [6]]}


async def test_a_list_of_numbers_is_never_one_row(call: Calls) -> None:
    assert await predict(call, "sum", instances=[1, 2]) == 400


async def test_inputs_are_columns_or_the_one_input(call: Calls) -> None:
    assert await predict(call, "sum", inputs=[[1, 2]]) == {"predictions": [3.0]}
    assert await predict(call, "sum", inputs={"x": [[1, 2]]}) == {"predictions": [3.0]}
    columns = {"name": ["a", "b"], "age": [1, 2]}
    assert await predict(call, "people", inputs=columns) == {"predictions": {"name": ["a", "b"], "next": [2, 3]}}


async def test_inputs_that_nobody_declared_are_what_json_says(call: Calls, door: NumpyDoor) -> None:
    door.served["any"] = numpy_model({}, {"y": "f8[n]"}, predict=lambda inputs, _: {"y": inputs["x"] * 2})
    assert await predict(call, "any", instances=[{"x": 1}, {"x": 2}]) == {"predictions": [2, 4]}
    assert await predict(call, "any", inputs={"x": [0.5]}) == {"predictions": [1.0]}
    assert await predict(call, "any", instances=[1, 2]) == 400


async def test_several_outputs_of_rows_are_rows(call: Calls) -> None:
    expected = {"predictions": [{"name": "a", "next": 2}, {"name": "b", "next": 3}]}
    rows = [{"name": "a", "age": 1}, {"name": "b", "age": 2}]
    assert await predict(call, "people", instances=rows) == expected
    assert await predict(call, "people", instances=[["a", 1], ["b", 2]]) == expected


async def test_bytes_are_base64_objects_both_ways(call: Calls) -> None:
    blob = {"b64": "/wA="}
    assert await predict(call, "bytes", instances=[blob, "text"]) == {"predictions": [blob, "text"]}
    assert await predict(call, "bytes", instances=[{"b": blob}]) == {"predictions": [blob]}
    assert await predict(call, "bytes", instances=[{"b64": "!"}]) == 400


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("sum", {}),
        ("sum", {"instances": [[1, 2]], "inputs": [[1, 2]]}),
        ("sum", {"instances": {"x": 1}}),
        ("sum", {"instances": []}),
        ("sum", {"instances": [[1, 2], [3]]}),
        ("sum", {"instances": [[1, "2"]]}),
        ("sum", {"instances": [[1, True]]}),
        ("sum", {"instances": [{"x": [1, 2]}, {"y": [1, 2]}]}),
        ("sum", {"instances": [{"x": [1, 2]}, [1, 2]]}),
        ("sum", {"instances": [{"q": 1}]}),
        ("column", {"instances": [1.0]}),
        ("people", {"inputs": ["a"]}),
        ("people", {"instances": [["a"]]}),
        ("people", {"instances": [None]}),
        ("people", {"inputs": {"name": ["a"]}}),
    ],
)
async def test_what_does_not_fit_is_400(call: Calls, model: str, body: dict[str, Any]) -> None:
    assert await predict(call, model, **body) == 400


async def test_deep_nesting_is_400(call: Calls) -> None:
    for depth in (100, 2000, 100_000):
        body = b'{"instances":' + b"[" * depth + b"]" * depth + b"}"
        assert (await call("POST", "/v1/models/sum:predict", body)).status == 400


async def test_a_model_that_is_not_ready_is_503(call: Calls, door: NumpyDoor) -> None:
    door.served["sum"].ready = False
    assert await predict(call, "sum", instances=[[1, 2]]) == 503


async def test_explain_is_501(call: Calls) -> None:
    assert (await call("POST", "/v1/models/sum:explain", b"{}")).status == 501
    assert (await call("POST", "/v1/models/nobody:explain", b"{}")).status == 404
