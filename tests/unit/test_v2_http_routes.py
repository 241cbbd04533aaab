from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from http_calls import Calls, body_of, header_of, json_of
from numpy_door import NumpyDoor, numpy_model
from tritonclient.http import InferResult

from penstock.core.door import ModelDescription
from penstock.core.errors import ServableError
from penstock.protocols.v2_http import plug
from penstock.protocols.v2_http.models import EXTENSIONS


def echo(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"text_output": inputs["text_input"]}


def words(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    for index, word in enumerate(inputs["text_input"].ravel()[0].decode().split()):
        if index == parameters.get("fail_at"):
            raise ValueError("no more words")
        yield {"text_output": np.array([[word.encode()]], dtype=object)}


@pytest.fixture
def door() -> NumpyDoor:
    return NumpyDoor(
        {
            "m": numpy_model({"x": "f4[n, 4]"}, {"y": "f4[n]"}, predict=lambda inputs, _: {"y": inputs["x"].sum(1)}),
            "text": numpy_model({"text_input": "str[n, 1]"}, {"text_output": "str[n, 1]"}, predict=echo),
            "words": numpy_model({"text_input": "str[n, 1]"}, {"text_output": "str[n, 1]"}, answer=words),
        }
    )


@pytest.fixture
def call(door: NumpyDoor) -> Calls:
    return Calls([plug], door)


async def test_health_is_200_with_a_body_and_503_when_not(call: Calls, door: NumpyDoor) -> None:
    assert json_of(await call("GET", "/v2/health/live")) == {"live": True}
    assert json_of(await call("GET", "/v2/health/ready")) == {"ready": True}
    assert json_of(await call("GET", "/v2/models/m/ready")) == {"name": "m", "ready": True}
    assert (await call("GET", "/v2/models/nobody/ready")).status == 404
    door.served["m"].ready = False
    for path in ("/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1/ready"):
        response = await call("GET", path)
        assert response.status == 503
        assert json_of(response)["ready"] is False


async def test_server_metadata_lists_only_what_works(call: Calls) -> None:
    document = json_of(await call("GET", "/v2"))
    assert document["name"] == "penstock" and document["version"]
    assert document["extensions"] == list(EXTENSIONS)
    assert not any("shared_memory" in name or name.startswith("sequence") for name in EXTENSIONS)


async def test_model_metadata_has_every_axis(call: Calls) -> None:
    assert json_of(await call("GET", "/v2/models/m")) == {
        "name": "m",
        "versions": ["1"],
        "platform": "numpy",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
    assert (await call("GET", "/v2/models/m/versions/2")).status == 404
    assert json_of(await call("GET", "/v2/models")) == {"models": ["m", "text", "words"]}


async def test_configuration_leaves_the_batch_axis_out(call: Calls) -> None:
    config = json_of(await call("GET", "/v2/models/m/config"))
    assert (config["name"], config["max_batch_size"]) == ("m", 8)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]


async def test_statistics_count_what_was_answered(call: Calls) -> None:
    before = json_of(await call("GET", "/v2/models/m/stats"))["model_stats"][0]
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    assert (await call("POST", "/v2/models/m/infer", orjson.dumps(request))).status == 200
    after = json_of(await call("GET", "/v2/models/m/versions/1/stats"))["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert set(after["inference_stats"]) == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    assert [item["name"] for item in json_of(await call("GET", "/v2/models/stats"))["model_stats"]] == [
        "m", "text", "words",
    ]  # fmt: skip


async def test_the_index_takes_an_empty_body_and_filters_ready_ones(call: Calls, door: NumpyDoor) -> None:
    door.served["m"].ready = False
    lines = json_of(await call("POST", "/v2/repository/index"))
    assert lines[0] == {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    ready = json_of(await call("POST", "/v2/repository/index", b'{"ready":true}'))
    assert [line["name"] for line in ready] == ["text", "words"]
    assert (await call("POST", "/v2/repository/index", b'{"ready":"yes"}')).status == 400
    assert (await call("POST", "/v2/repository/mine/index")).status == 501


async def test_load_hands_on_config_and_files(call: Calls, door: NumpyDoor) -> None:
    parameters = {"config": '{"max_batch_size": 4}', "file:1/model.onnx": base64.b64encode(b"\0weights").decode()}
    response = await call("POST", "/v2/repository/models/m/load", orjson.dumps({"parameters": parameters}))
    assert json_of(response) == {"name": "m", "load": True}
    assert door.loads == [("m", {"max_batch_size": 4}, {"1/model.onnx": b"\0weights"})]
    assert (await call("POST", "/v2/repository/models/m/load")).status == 200
    assert door.loads[-1] == ("m", None, None)


@pytest.mark.parametrize(
    "parameters",
    [
        {"file:1/model.onnx": "AAAA"},
        {"config": "{}", "file:../../etc/passwd": "AAAA"},
        {"config": "{}", "file:/etc/passwd": "AAAA"},
        {"config": "{}", "file:1//x": "AAAA"},
        {"config": "{}", "file:": "AAAA"},
        {"config": "{}", "file:a\\..\\b": "AAAA"},
        {"config": "{}", "file:1/x": "not base64!"},
        {"config": "{}", "file:1/x": 7},
        {"config": "[1]"},
        {"config": "{"},
        {"config": 7},
        {"cofnig": "{}"},
        [],
    ],
)
async def test_a_load_that_can_never_be_right_reaches_no_door(call: Calls, door: NumpyDoor, parameters: object) -> None:
    response = await call("POST", "/v2/repository/models/m/load", orjson.dumps({"parameters": parameters}))
    assert response.status == 400
    assert door.loads == []


async def test_unload_answers_both_clients(call: Calls, door: NumpyDoor) -> None:
    body = b'{"parameters":{"unload_dependents":false}}'
    assert json_of(await call("POST", "/v2/repository/models/m/unload", body)) == {"name": "m", "unload": True}
    assert door.served["m"].ready is False
    assert (await call("POST", "/v2/repository/models/nobody/unload")).status == 404


async def test_settings_answer_the_full_set_after_a_change(call: Calls) -> None:
    changed = json_of(await call("POST", "/v2/trace/setting", b'{"trace_level":["TIMESTAMPS"],"trace_rate":null}'))
    assert changed["trace_level"] == ["TIMESTAMPS"]
    assert json_of(await call("GET", "/v2/models/m/trace/setting")) == changed
    assert (await call("POST", "/v2/trace/setting", b'{"trace_rate":5}')).status == 400
    changed = json_of(await call("POST", "/v2/logging", b'{"log_verbose_level":2,"log_info":false}'))
    assert (changed["log_verbose_level"], changed["log_info"]) == (2, False)
    assert json_of(await call("GET", "/v2/logging")) == changed
    assert (await call("POST", "/v2/logging", b'{"log_info":[]}')).status == 400


@pytest.mark.parametrize("kind", ["systemsharedmemory", "cudasharedmemory"])
async def test_shared_memory_routes_are_501_with_the_reason(call: Calls, kind: str) -> None:
    for method, path in (
        ("GET", "/status"), ("GET", "/region/r/status"), ("POST", "/region/r/register"), ("POST", "/unregister"),
        ("POST", "/region/r/unregister"),
    ):  # fmt: skip
        response = await call(method, f"/v2/{kind}{path}", b'{"key":"/x","offset":0,"byte_size":4}')
        assert response.status == 501
        assert "binary data" in json_of(response)["error"]


async def test_generate_maps_keys_to_inputs_and_the_rest_to_parameters(call: Calls, door: NumpyDoor) -> None:
    body = b'{"text_input":"hello","id":"7","parameters":{"top_k":3},"stream":false}'
    answer = json_of(await call("POST", "/v2/models/text/generate", body))
    assert answer == {"model_name": "text", "model_version": "1", "id": "7", "text_output": "hello"}
    assert door.served["text"].seen[0].parameters == {"top_k": 3, "stream": False}
    assert (await call("POST", "/v2/models/text/generate", b'{"text_input":"a","x":{"y":1}}')).status == 400
    assert (await call("POST", "/v2/models/text/generate", b'{"text_input":1}')).status == 400


async def test_generate_stream_gives_one_event_an_answer_and_ends_with_an_error_event(call: Calls) -> None:
    pieces = await call.stream("/v2/models/words/generate_stream", b'{"text_input":"to be or"}')
    assert [piece[:6] for piece in pieces if piece] == [b"data: "] * 3
    assert [orjson.loads(piece[6:])["text_output"] for piece in pieces if piece] == ["to", "be", "or"]
    pieces = await call.stream("/v2/models/words/generate_stream", b'{"text_input":"to be or","fail_at":1}')
    assert orjson.loads(pieces[-1][6:]) == {"error": "no more words", "type": "ServableError"}
    assert all(piece.endswith(b"\n\n") for piece in pieces)


async def test_infer_stream_gives_v2_answers_that_the_client_reads(call: Calls) -> None:
    item = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["to be"]}
    body = orjson.dumps({"inputs": [item], "parameters": {"binary_data_output": True}})
    pieces = await call.stream("/v2/models/words/infer_stream", body)
    results = [InferResult.from_response_body(piece[6:]) for piece in pieces if piece]
    assert [result.as_numpy("text_output").tolist() for result in results] == [[["to"]], [["be"]]]


async def test_every_error_is_a_json_object_with_one_key(call: Calls, door: NumpyDoor) -> None:
    def broken(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
        raise ValueError("weights are gone")

    door.served["m"].predict = broken
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    response = await call("POST", "/v2/models/m/infer", orjson.dumps(request))
    assert (response.status, json_of(response)) == (500, {"error": "weights are gone"})
    assert header_of(response, "Retry-After") is None
    assert plug.encode_error(ServableError('quo"te\n'), call.request("GET", "/v2")[1]).status == 500
    assert b"\\n" in body_of(plug.encode_error(ServableError('quo"te\n'), call.request("GET", "/v2")[1]))


async def test_configuration_of_a_model_whose_requests_are_not_joined_keeps_every_axis(door: NumpyDoor) -> None:
    class Unjoined(NumpyDoor):
        def describe(self, model: str, version: str = "") -> ModelDescription:
            description = super().describe(model, version)
            return dataclasses.replace(description, config={**description.config, "max_batch_size": 0})

    config = json_of(await Calls([plug], Unjoined(door.served))("GET", "/v2/models/m/config"))
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [-1, 4])
    assert "dynamic_batching" not in config
