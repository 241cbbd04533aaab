"""Language models under `penstock up`: two deployments of the echo engine, chat by the body's model, a tenant's tokens."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from running_fleet import FleetFactory, until

pytestmark = pytest.mark.timeout(120)


def call(url: str, body: object = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_chats_go_to_the_model_that_they_name_and_tenants_have_their_tokens(fleet: FleetFactory, llmecho: Path) -> None:
    running = fleet("--no-grpc")
    for name, balance in (("one", "prefix"), ("two", "round_robin")):
        running.fleet.deploy(name, str(llmecho), requests={"balance": balance})
    for name in ("one", "two"):
        running.fleet.wait(name)

    def chat(model: str, text: str = "hello there", **headers: str) -> tuple[int, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        return call(f"{running.http}/v1/chat/completions", body, **headers)

    for name in ("one", "two"):
        status, answer = until(lambda name=name: found if (found := chat(name))[0] == 200 else None, name)  # type: ignore[misc]
        assert status == 200 and answer["choices"][0]["message"]["content"]
    listed = call(f"{running.http}/v1/models")[1]["data"]
    assert {"one", "two"} <= {model["id"] for model in listed}
    assert chat("three")[1]["error"]["code"] == "model_not_found"
    key = running.fleet.set_tenant("acme", tokens_per_day=100).key
    until(lambda: chat("one")[0] == 401, "keys that are asked for")
    asked = {"Authorization": f"Bearer {key}"}
    statuses = [chat("one", "hello " * 5, **asked)[0] for _ in range(12)]
    assert statuses[0] == 200 and statuses[-1] == 429
