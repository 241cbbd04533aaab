"""The official client against a real server, sync, async and streaming."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pytest
from pydantic import BaseModel

KEY = "a key for these tests"
Client = openai.OpenAI


@pytest.fixture(scope="module")
def running(shared_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("echo") / "echo.llmecho"
    path.touch()
    slow = {"path": str(path), "options": {"delay_s": 0.05}}
    return shared_server({"echo": str(path), "slow": slow}, api_key=KEY)


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[Client]:
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_models(client: Client) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "slow"]
    model = client.models.retrieve("echo")
    assert (model.id, model.object, model.owned_by) == ("echo", "model", "penstock") and model.created > 0
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("nobody")
    assert refused.value.code == "model_not_found"


def test_an_answer(client: Client) -> None:
    answer = client.chat.completions.create(model="echo", messages=user("say:hello"), max_completion_tokens=64)
    assert answer.choices[0].message.content == "hello" and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 6
    short = client.chat.completions.create(model="echo:1", messages=user("say:hello"), max_tokens=2)
    assert short.choices[0].message.content == "he" and short.choices[0].finish_reason == "length"
    assert short.system_fingerprint == answer.system_fingerprint


def test_a_stream(client: Client) -> None:
    with client.chat.completions.create(
        model="echo", messages=user("say:héllo"), n=2, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    *told, last = chunks
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 14
    for index in range(2):
        mine = [chunk.choices[0] for chunk in told if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == "stop"
        assert "".join(choice.delta.content or "" for choice in mine) == "héllo"


async def test_the_asynchronous_client(running: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key=KEY) as client:
        stream = await client.chat.completions.create(model="echo", messages=user("say:abc"), stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "abc"
        answer = await client.completions.create(model="echo", prompt="say:abc")
        assert answer.choices[0].text == "abc"


def test_stop_and_seed_and_many_choices(client: Client) -> None:
    for stop in ("lo", ["xx", "lo"]):
        answer = client.chat.completions.create(model="echo", messages=user("say:hello"), stop=stop, n=3, seed=1)
        assert [choice.message.content for choice in answer.choices] == ["hel"] * 3
        assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_logprobs(client: Client) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=user("say:é"), logprobs=True, top_logprobs=2, max_tokens=2
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    first, second = answer.choices[0].logprobs.content[:2]
    assert (first.bytes or []) + (second.bytes or []) == list("é".encode())
    assert first.logprob == pytest.approx(math.log(0.5)) and len(first.top_logprobs) == 2


def test_completions(client: Client) -> None:
    answer = client.completions.create(model="echo", prompt=["say:ab", "say:cd"], n=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["ab", "ab", "cd", "cd"]
    assert answer.choices[2].logprobs is not None and answer.choices[2].logprobs.text_offset[:2] == [0, 1]
    assert client.completions.create(model="echo", prompt="say:ab", echo=True).choices[0].text == "say:abab"
    ids = list(b"say:ids")
    assert client.completions.create(model="echo", prompt=[ids, ids]).choices[1].text == "ids"
    streamed = client.completions.create(model="echo", prompt="say:abc", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abc"


def test_embeddings(client: Client) -> None:
    plain = client.embeddings.create(model="echo", input=["a", "b"], encoding_format="float")
    default = client.embeddings.create(model="echo", input=["a", "b"])  # base64, decoded by the client
    raw = client.embeddings.with_raw_response.create(model="echo", input="a", encoding_format="base64")
    data = json.loads(raw.text)["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(data), "<f4")
    assert np.allclose(plain.data[0].embedding, vector) and np.allclose(default.data[0].embedding, vector)
    assert len(plain.data) == 2 and plain.usage.prompt_tokens > 0
    short = client.embeddings.create(model="echo", input="a", dimensions=3)
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="echo", input="a", dimensions=9)


def test_request_ids_are_shown(client: Client) -> None:
    raw = client.chat.completions.with_raw_response.create(model="echo", messages=user("say:a"))
    assert raw.headers["x-request-id"].startswith("req_") and raw.parse()._request_id == raw.headers["x-request-id"]
    mine = client.chat.completions.with_raw_response.create(
        model="echo", messages=user("say:a"), extra_headers={"X-Request-Id": "mine"}
    )
    assert mine.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 9}, "temperature"), ({"max_tokens": -1}, "max_tokens"), ({"messages": []}, "messages"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"), ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"messages": user("x" * 5000)}, "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_400_and_named(client: Client, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "echo", "messages": user("a"), **options})
    assert refused.value.param == param and refused.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long(client: Client) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="echo", prompt="x" * 5000)
    assert refused.value.code == "context_length_exceeded"


def test_what_the_engine_lacks_is_named(client: Client) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=user("a"), response_format={"type": "json_object"})
    assert refused.value.param == "response_format"


def test_keys_and_names(running: Any, client: Client) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="wrong").chat.completions.create(model="echo", messages=user("a"))
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=user("a"))
    assert missing.value.code == "model_not_found" and missing.value.param == "model"


def test_an_engine_that_dies_in_a_stream_is_an_error(client: Client) -> None:
    stream = client.chat.completions.create(model="slow", messages=user("die:abcdef"), stream=True)
    with pytest.raises(openai.APIError) as died:
        for _ in stream:
            pass
    assert died.value.code == "engine_lost"


def test_clients_do_not_repeat_what_may_have_killed_an_engine(client: Client) -> None:
    with pytest.raises(openai.InternalServerError) as died:
        client.with_options(max_retries=3).chat.completions.create(model="slow", messages=user("die:"))
    assert died.value.status_code == 503 and died.value.code == "engine_lost"
    assert died.value.request.headers["x-stainless-retry-count"] == "0"


def test_a_client_that_leaves_frees_the_engine(running: Any, client: Client) -> None:
    with client.chat.completions.create(model="slow", messages=user("say:" + "x" * 500), stream=True) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model="slow", messages=user("say:ok"))
    assert answer.choices[0].message.content == "ok"


# A real model: constrained output


class Place(BaseModel):
    city: Literal["Paris", "Rome"]
    large: bool


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}},
            "required": ["city"], "additionalProperties": False,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def real(shared_server: Any, smollm2: Path) -> Iterator[Client]:
    server = shared_server(
        {"smol": {"path": str(smollm2), "threads": 1, "options": {"engine": "llamacpp", "context_tokens": 2048}}}
    )
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_parse_gives_the_class(real: Client) -> None:
    parsed = real.chat.completions.parse(
        model="smol", messages=user("Paris is large."), response_format=Place, max_tokens=50, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Place)
    with pytest.raises(openai.LengthFinishReasonError):
        real.chat.completions.parse(model="smol", messages=user("Paris"), response_format=Place, max_tokens=2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_tool_calls_are_of_the_schema(real: Client, choice: Any) -> None:
    asked: Any = {
        "model": "smol", "messages": user("Where is Rome?"), "tools": [TOOL], "tool_choice": choice, "temperature": 0,
        "parallel_tool_calls": False, "max_tokens": 100,
    }  # fmt: skip
    answer = real.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name == "look_up" and json.loads(call.function.arguments)["city"] in ("Rome", "Paris")
    parts = [
        part
        for chunk in real.chat.completions.create(**asked, stream=True)
        for part in (chunk.choices[0].delta.tool_calls or ())
    ]
    assert parts[0].id and parts[0].function.name == "look_up" and all(not part.id for part in parts[1:])
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments


def test_patterns_and_top_logprobs(real: Client) -> None:
    answer = real.chat.completions.create(
        model="smol", messages=user("A year?"), extra_body={"guided_regex": "(19|20)[0-9]{2}"}, max_tokens=20
    )
    assert len(answer.choices[0].message.content or "") == 4
    likely = real.chat.completions.create(
        model="smol", messages=user("Hi"), logprobs=True, top_logprobs=3, max_tokens=3, temperature=0
    )
    assert likely.choices[0].logprobs is not None
    for token in likely.choices[0].logprobs.content or ():
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-3)
        assert bytes(token.bytes or ()).decode() == token.token
