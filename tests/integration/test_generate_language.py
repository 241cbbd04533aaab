"""Triton's generate extension for language models, on a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import RunningServer, ServerFactory


@pytest.fixture(scope="module")
def url(shared_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("model") / "echo.llmecho"
    path.touch()
    running: RunningServer = shared_server({"echo": str(path)})
    return f"{running.http}/v2/models/echo"


def events(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/generate_stream", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]


def test_a_text_is_generated(url: str) -> None:
    body = {"text_input": "say:hello", "parameters": {"stream": False, "temperature": 0}}
    assert httpx.post(f"{url}/generate", json=body).json() == {
        "model_name": "echo", "model_version": "1", "text_output": "hello",
    }  # fmt: skip
    versioned = f"{url}/versions/1/generate"
    answer = httpx.post(versioned, json={"text_input": "say:hello", "id": "7", "max_tokens": 2}).json()
    assert (answer["id"], answer["text_output"]) == ("7", "he")


def test_a_stream_joins_to_the_same_text(url: str) -> None:
    found = events(url, {"text_input": "say:grüße", "parameters": {"stream": True, "return_finish_reason": True}})
    assert "".join(event["text_output"] for event in found) == "grüße"
    assert all(event["model_name"] == "echo" for event in found)
    assert found[-1]["finish_reason"] == "stop"
    (whole,) = events(url, {"text_input": "say:abc", "parameters": {"stream": False}})
    assert whole["text_output"] == "abc"


def test_parameters_are_obeyed(url: str) -> None:
    def text(**parameters: object) -> str:
        body = {"text_input": "say:hello", "parameters": parameters}
        return str(httpx.post(f"{url}/generate", json=body).raise_for_status().json()["text_output"])

    assert text(stop=["l"]) == "he"
    assert text(exclude_input_in_output=False) == "say:hellohello"
    assert text(sampling_parameters=None) == "hello"
    body = {"text_input": ["say:hello"], "sampling_parameters": '{"max_tokens": 1}', "bad_words": "", "stop_words": ""}
    assert httpx.post(f"{url}/generate", json=body).json()["text_output"] == "h"
    told = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    answer = httpx.post(f"{url}/generate", json={"text_input": "say:hello", "parameters": told}).json()
    assert (answer["num_input_tokens"], answer["num_output_tokens"]) == (10, 6)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "text_input"), ({"text_input": 3}, "text_input"), ({"text_input": ["a", "b"]}, "text_input"),
        ({"text_input": "a", "parameters": {"max_tokens": 0}}, "max_tokens"),
        ({"text_input": "a", "parameters": {"temperature": -1}}, "temperature"),
        ({"text_input": "a", "parameters": {"nonsense": 1}}, "nonsense"),
        ({"text_input": "a", "sampling_parameters": "[1"}, "JSON"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["generate", "generate_stream"])
def test_what_is_wrong_is_named(url: str, route: str, body: dict[str, Any], named: str) -> None:
    answer = httpx.post(f"{url}/{route}", json=body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_a_stream_is_not_asked_of_generate(url: str) -> None:
    answer = httpx.post(f"{url}/generate", json={"text_input": "a", "parameters": {"stream": True}})
    assert answer.status_code == 400 and "generate_stream" in answer.json()["error"]
    unknown = httpx.post(url.replace("echo", "nobody") + "/generate", json={"text_input": "a"})
    assert unknown.status_code == 404
    shown = httpx.get(url).json()
    assert [one["name"] for one in (*shown["inputs"], *shown["outputs"])] == ["text_input", "text_output"]


def test_a_late_fault_is_an_event(url: str) -> None:
    body = {"text_input": "die:hello", "parameters": {"stream": True, "max_tokens": 50}}
    answer = httpx.post(f"{url}/generate_stream", json=body)
    assert answer.status_code == 503 or '"error"' in answer.text
