from __future__ import annotations

import pytest
from http_calls import Calls, body_of, json_of
from numpy_door import NumpyDoor, numpy_model
from scripted_language import Script, ScriptDoor

from penstock.protocols.openai_http import plug


@pytest.fixture
def door() -> ScriptDoor:
    return ScriptDoor(Script(), {"sum": numpy_model({"x": "f4[n]"}, {"y": "f4[n]"})})


@pytest.fixture
def call(door: ScriptDoor) -> Calls:
    return Calls([plug], door)


async def test_the_list_serves_both_kinds_of_clients(call: Calls) -> None:
    document = json_of(await call("GET", "/v1/models"))
    assert document["object"] == "list" and document["models"] == ["m", "sum"]
    model, adapter = document["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("m", "model", "penstock")
    assert (
        model["created"] == 1_700_000_000
        and model["max_model_len"] == 64
        and model["generates"]
        and model["parent"] is None
    )
    assert (adapter["id"], adapter["parent"], adapter["root"]) == ("polite", "m", "m")


async def test_one_model(call: Calls, door: ScriptDoor) -> None:
    document = json_of(await call("GET", "/v1/models/m"))
    assert (document["id"], document["name"], document["ready"]) == ("m", "m", True)
    assert json_of(await call("GET", "/v1/models/polite"))["parent"] == "m"
    assert json_of(await call("GET", "/v1/models/m:3"))["id"] == "m:3"
    assert json_of(await call("GET", "/v1/models/sum")) == {"name": "sum", "ready": True}
    door.served["sum"].ready = False
    answer = await call("GET", "/v1/models/sum")
    assert answer.status == 503 and json_of(answer)["ready"] is False
    answer = await call("GET", "/v1/models/nobody")
    assert answer.status == 404 and json_of(answer)["error"]["code"] == "model_not_found"


async def test_a_server_without_language_models_answers_kserves_clients() -> None:
    call = Calls([plug], NumpyDoor({"sum": numpy_model({"x": "f4[n]"}, {"y": "f4[n]"})}))
    document = json_of(await call("GET", "/v1/models"))
    assert document["models"] == ["sum"] and document["data"] == []
    answer = await call("POST", "/v1/chat/completions", b'{"model":"sum","messages":[{"role":"user","content":"a"}]}')
    assert answer.status == 400 and json_of(answer)["error"]["param"] == "model"


async def test_without_a_name_the_only_language_model_is_asked(call: Calls) -> None:
    assert json_of(await call("POST", "/tokenize", b'{"prompt":"a"}'))["count"] == 2
    empty = Calls([plug], NumpyDoor({}))
    answer = await empty("POST", "/tokenize", b'{"prompt":"a"}')
    assert answer.status == 400 and json_of(answer)["error"]["param"] == "model"


async def test_health_and_version(call: Calls) -> None:
    answer = await call("GET", "/health")
    assert answer.status == 200 and body_of(answer) == b""
    assert json_of(await call("GET", "/version"))["version"]
