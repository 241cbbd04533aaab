"""What a model's engine lacks, another model of the same server answers, if the owner said so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import RunningServer, ServerFactory

BIASED = {"logit_bias": {"65": 1}}  # the echo engine takes it
MESSAGES = [{"role": "user", "content": "say:x"}]
# The echo engine gives at most five log-probabilities, and holds no output to a grammar.
LACKING: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True, "top_logprobs": 8},
    "response_format": {"response_format": {"type": "json_object"}},
}


def write(path: Path, says: str) -> Path:
    path.write_text(says)
    return path


@pytest.fixture
def models(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """`first` falls back to `second`; `able` is one whose answers come from an engine that biases tokens and more."""
    first, second = write(tmp_path / "first.llmecho", "1"), write(tmp_path / "second.llmecho", "2")
    return {
        "first": {"path": str(first), "options": {"lacks": "logit_bias,min_tokens", "fallback_model": "second"}},
        "second": {"path": str(second)},
    }


def ask(running: RunningServer, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    return httpx.post(running.http + path, json={"model": "first", "messages": MESSAGES, **more}, timeout=30)


def spoken(running: RunningServer, model: str) -> float:
    """Requests that a model has answered."""
    lines = httpx.get(running.http + "/metrics", timeout=30).text.splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("penstock_llm_finished_total{") and f'model="{model}"' in line
    )


@pytest.mark.parametrize("fronts", [1, 2])
def test_another_model_answers_what_the_engine_lacks(
    server: ServerFactory, models: dict[str, dict[str, Any]], fronts: int
) -> None:
    running = server(models, fronts=fronts)
    for _ in range(3):
        own = ask(running)
        assert own.json()["choices"][0]["message"]["content"] == "1x" and "penstock-answered-by" not in own.headers
        other = ask(running, **BIASED)
        assert other.status_code == 200, other.text
        assert other.json()["choices"][0]["message"]["content"] == "2x"
        assert other.json()["model"] == "first" and other.headers["penstock-answered-by"] == "second:1"
    streamed = ask(running, **BIASED, stream=True, n=2)
    assert streamed.headers["penstock-answered-by"] == "second:1"
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert {one["model"] for one in chunks} == {"first"}
    for choice in range(2):
        found = [part for one in chunks for part in one["choices"] if part["index"] == choice]
        assert "".join(part["delta"].get("content") or "" for part in found) == "2x"
    assert (spoken(running, "first"), spoken(running, "second")) == (3, 4)


def test_every_surface_tells_who_answered(server: ServerFactory, models: dict[str, dict[str, Any]]) -> None:
    running = server(models)
    asked: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "first", "prompt": ["say:x", "say:x"], **BIASED},
        "/v1/responses": {"model": "first", "input": "say:x", "min_tokens": 2},
        "/v2/models/first/generate": {"text_input": "say:x", "min_tokens": 2},
        "/v2/models/first/generate_stream": {"text_input": "say:x", "min_tokens": 2},
        "/generate": {"text": "say:x", "consumer_group": "first", "min_new_tokens": 2},
        "/generate_stream": {"text": "say:x", "consumer_group": "first", "min_new_tokens": 2},
    }
    for path, body in asked.items():
        found = httpx.post(running.http + path, json=body, timeout=30)
        assert found.status_code == 200 and "2" in found.text, (path, found.text)
        assert found.headers.get_list("penstock-answered-by") == ["second:1"], path
    generated = httpx.post(running.http + "/v2/models/first/generate", json=asked["/v2/models/first/generate"]).json()
    assert generated["model_name"] == "first" and generated["text_output"] == "2x"


@pytest.mark.parametrize("name", LACKING)
def test_what_neither_can_do_is_refused_by_name(
    server: ServerFactory, models: dict[str, dict[str, Any]], name: str
) -> None:
    refused = ask(server(models), **LACKING[name])
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == name and error["code"] == "unsupported_parameter"
    assert "nor can its fallback_model 'second'" in error["message"]


def test_without_the_option_it_is_refused(server: ServerFactory, models: dict[str, dict[str, Any]]) -> None:
    del models["first"]["options"]["fallback_model"]
    refused = ask(server(models), **BIASED)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "logit_bias"


def test_a_wrong_value_goes_nowhere_else(server: ServerFactory, models: dict[str, dict[str, Any]]) -> None:
    refused = ask(server(models), **BIASED, temperature=9)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "temperature"


@pytest.mark.parametrize("fronts", [1, 2])
def test_loading_a_model_loads_its_fallback_and_one_that_is_gone_is_a_503(
    server: ServerFactory, models: dict[str, dict[str, Any]], fronts: int
) -> None:
    running = server(models, model_control="explicit", load_models=["first", "second"], fronts=fronts)
    assert httpx.post(running.http + "/v2/repository/models/second/unload", timeout=30).status_code == 200
    assert ask(running, **BIASED).status_code == 200, "the first one needs it"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda models: models["second"].update(options={"fallback_model": "first"}), "first → second → first"),
        (lambda models: models["first"]["options"].update(fallback_model="first"), "first → first"),
        (lambda models: models["first"]["options"].update(fallback_model="secnd"), "did you mean 'second'?"),
        (lambda models: models["first"]["options"].update(fallback_model="other"), "no language model"),
    ],
)
def test_a_fallback_that_cannot_be_one_is_refused_at_load(
    server: ServerFactory, models: dict[str, dict[str, Any]], tmp_path: Path,
    change: Callable[[dict[str, dict[str, Any]]], None], told: str,
) -> None:  # fmt: skip
    (tmp_path / "other.py").write_text(
        'import penstock\n\n\n@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})\n'
        'def other(x):\n    return {"y": x}\n'
    )
    models["other"] = {"path": f"{tmp_path}/other.py:other", "warm_up": False}
    change(models)
    with pytest.raises(RuntimeError) as raised:
        server(models)
    assert told in str(raised.value) and "fallback_model" in str(raised.value)
