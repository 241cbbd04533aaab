"""The official client against every engine on real weights: each call is right, or refused by the parameter's name."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from running_server import RunningServer, ServerFactory

ENGINES = ("llamacpp", "openvino")
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up", "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}, "large": {"type": "boolean"}},
            "required": ["city", "large"], "additionalProperties": False,
        },
    },
}  # fmt: skip
QUESTION: Any = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture(scope="module")
def running(shared_server: ServerFactory, smollm2: Path, request: pytest.FixtureRequest) -> RunningServer:
    cache = request.config.cache.mkdir("converted") if request.config.cache else None
    options: dict[str, Any] = {"context_tokens": 1024, "max_running": 8} | ({"cache": str(cache)} if cache else {})
    return shared_server({
        engine: {"path": str(smollm2), "options": {**options, "engine": engine}, "threads": 1} for engine in ENGINES
    })  # fmt: skip


@pytest.fixture(scope="module")
def client(running: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0, timeout=120) as found:
        yield found


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def chat(client: openai.OpenAI, model: str, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 12, **more}
    )


def test_models(client: openai.OpenAI, model: str) -> None:
    assert sorted(one.id for one in client.models.list()) == sorted(ENGINES)
    assert client.models.retrieve(model).id == model


def test_choices_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    whole = chat(client, model, n=2, max_completion_tokens=8, max_tokens=None)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage.completion_tokens == 16
    assert {choice.finish_reason for choice in whole.choices} == {"length"}
    chunks = list(chat(client, model, n=2, max_tokens=8, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16 and all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == "length"
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
    bare = list(chat(client, model, stream=True))
    assert all(chunk.choices and not chunk.usage for chunk in bare)


def test_stops_are_never_in_the_text(client: openai.OpenAI, model: str) -> None:
    text = chat(client, model).choices[0].message.content
    stop = text[len(text) // 2 :][:4]
    answer = chat(client, model, stop=[stop, "never said"])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop" and 0 < answer.usage.completion_tokens <= 12


def test_seeds_repeat(client: openai.OpenAI, model: str) -> None:
    def once() -> Any:
        return chat(client, model, temperature=1.0, seed=7).choices[0].message.content

    try:
        first = once()
    except openai.BadRequestError as refused:
        assert refused.param == "seed"
        return
    if model == "llamacpp":  # OpenVINO repeats only without a prefix cache, as its page says
        assert once() == first


def test_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, logprobs=True).choices[0]
    assert b"".join(bytes(one.bytes) for one in answer.logprobs.content).decode() == answer.message.content
    assert all(one.logprob <= 0 for one in answer.logprobs.content)
    if model == "openvino":
        with pytest.raises(openai.BadRequestError) as refused:
            chat(client, model, logprobs=True, top_logprobs=3)
        assert refused.value.param == "top_logprobs"
        return
    for one in chat(client, model, logprobs=True, top_logprobs=3).choices[0].logprobs.content:
        assert len(one.top_logprobs) == 3 and one.top_logprobs[0].logprob == pytest.approx(one.logprob, abs=1e-3)


def test_logprobs_reach_to_where_a_stop_cuts(client: openai.OpenAI, model: str) -> None:
    """A token that the stop string begins in the middle of is told, since its beginning is shown."""
    tokens = [one.token for one in chat(client, model, logprobs=True, max_tokens=20).choices[0].logprobs.content]
    text = "".join(tokens)
    begins = [len("".join(tokens[:at])) for at in range(len(tokens))]
    cut = next(at for at in range(1, len(tokens)) if tokens[at][2:] and text.find(tokens[at][2:]) == begins[at] + 2)
    choice = chat(client, model, logprobs=True, max_tokens=20, stop=tokens[cut][2:]).choices[0]
    assert choice.message.content == text[: begins[cut] + 2]
    assert [one.token for one in choice.logprobs.content] == tokens[: cut + 1]


def test_bias(client: openai.OpenAI, model: str) -> None:
    if model == "openvino":
        with pytest.raises(openai.BadRequestError) as refused:
            chat(client, model, logit_bias={"28": 100})
        assert refused.value.param == "logit_bias"
        return
    assert len(set(chat(client, model, logit_bias={"28": 100}).choices[0].message.content)) == 1


@pytest.mark.parametrize("choice", ["required", "auto", "none", {"type": "function", "function": {"name": "look_up"}}])
def test_tools(client: openai.OpenAI, model: str, choice: Any) -> None:
    asked: Any = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 60}
    answer = chat(client, model, **asked).choices[0]
    parts: list[Any] = []
    for chunk in chat(client, model, stream=True, **asked):
        parts += chunk.choices[0].delta.tool_calls or ()
    calls = answer.message.tool_calls or []
    assert "".join(part.function.arguments or "" for part in parts) == "".join(c.function.arguments for c in calls)
    if choice in ("auto", "none"):
        assert answer.finish_reason in ("stop", "length", "tool_calls") and not (choice == "none" and calls)
        return
    assert answer.finish_reason == "tool_calls" and len(calls) == 1
    jsonschema.validate(json.loads(calls[0].function.arguments), TOOL["function"]["parameters"])
    assert parts[0].id and parts[0].function.name == "look_up" and not any(part.id for part in parts[1:])
    assert {part.index for part in parts} == {0}


def test_a_call_is_whole_or_none(client: openai.OpenAI, model: str) -> None:
    """A limit cuts a call off, and says so; a stop string ends text, and is none in a call that was forced."""
    asked: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    cut = chat(client, model, **asked, max_tokens=4).choices[0]
    assert cut.finish_reason == "length" and not cut.message.content
    whole = chat(client, model, **asked, max_tokens=60, stop=["Rome", "Paris"]).choices[0]
    assert whole.finish_reason == "tool_calls"
    jsonschema.validate(json.loads(whole.message.tool_calls[0].function.arguments), TOOL["function"]["parameters"])


def test_completions(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "temperature": 0, "max_tokens": 5}
    plain = client.completions.create(prompt="The sea is", **asked).choices[0].text
    assert client.completions.create(prompt="The sea is", echo=True, **asked).choices[0].text == "The sea is" + plain
    two = client.completions.create(prompt=["The sea is", "One, two,"], **asked)
    assert [choice.index for choice in two.choices] == [0, 1] and two.choices[0].text
    found = client.completions.create(prompt="The sea is", logprobs=0, **asked).choices[0].logprobs
    assert found is not None and "".join(found.tokens or ()) == plain
    assert found.text_offset and found.text_offset[0] == 0


def test_parts(client: openai.OpenAI, model: str) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Tell me about the sea."}]}]
    answer = chat(client, model, messages=parts)
    assert answer.choices[0].message.content == chat(client, model).choices[0].message.content


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 9}, "temperature"), ({"max_tokens": -1}, "max_tokens"), ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "sea " * 2000}]}, "messages"),
        ({"max_tokens": 10**6}, "max_tokens"), ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": "#/nowhere"}}}},
         "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}],
          "tool_choice": "required"}, "tools"),
        ({"extra_body": {"guided_regex": "a", "min_tokens": 3}}, "min_tokens"),
        ({"extra_body": {"guided_regex": "a", "ignore_eos": True}}, "ignore_eos"),
        ({"extra_body": {"temprature": 1}}, "temprature"), ({"extra_body": {"top_n_sigma": None, "n": 0}}, "n"),
    ],
)  # fmt: skip
def test_refusals(client: openai.OpenAI, model: str, more: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, model, **more)
    assert refused.value.param == param
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, max_tokens=1, extra_body={"nobody_knows_this": 1}
    )
    assert "nobody_knows_this" in raw.headers["penstock-ignored"]


def test_unknown_models(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client, "nobody")
    assert refused.value.code == "model_not_found"


async def test_greedy_answers_are_the_same_through_every_surface(running: RunningServer, model: str) -> None:
    """Sync and async, whole and streamed, chat and text: token for token what one call of ids gives."""
    url, messages = running.http, [{"role": "user", "content": "Tell me about the sea."}]
    common: Any = {"model": model, "temperature": 0, "max_tokens": 12}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, \
            httpx.AsyncClient(timeout=60) as plain:  # fmt: skip
        ids = (await plain.post(f"{url}/tokenize", json={"model": model, "messages": messages})).json()["tokens"]
        prompt = (await plain.post(f"{url}/detokenize", json={"model": model, "tokens": ids})).json()["prompt"]
        # Once before any is compared: a prompt out of the prefix cache is computed in other pieces, whose sums differ in
        # their last bits, and here two words are about as likely.
        await client.completions.create(prompt=ids, **common)
        texts = {"ids": (await client.completions.create(prompt=ids, **common)).choices[0].text}
        texts["completions"] = (await client.completions.create(prompt=prompt, **common)).choices[0].text
        stream = await client.chat.completions.create(messages=messages, stream=True, **common)
        texts["chat streamed"] = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        whole = await client.chat.completions.create(messages=messages, **common)
        texts["chat"] = whole.choices[0].message.content or ""
        body = {"text_input": prompt, "parameters": {"temperature": 0, "max_tokens": 12}}
        texts["v2"] = (await plain.post(f"{url}/v2/models/{model}/generate", json=body)).json()["text_output"]
        takeoff = {"text": prompt, "max_new_tokens": 12, "consumer_group": model}
        texts["takeoff"] = (await plain.post(f"{url}/generate", json=takeoff)).json()["text"]
        message = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
        answer = (await plain.post(f"{url}/v1/messages", json=message)).json()
        texts["anthropic"] = answer["content"][0]["text"]
    assert set(texts.values()) == {texts["ids"]}, texts


def schema_of(choose: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema whose values are short."""
    kind = choose.choice(
        ("object", "array", "enum", "integer", "boolean", "string", "any") if depth else ("enum", "integer")
    )
    if kind == "object":
        names = choose.sample(["a", "name", "ü", 'q"'], choose.randint(1, 2))
        inner = {name: schema_of(choose, depth - 1) for name in names}
        return {"type": "object", "properties": inner, "required": names, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": schema_of(choose, depth - 1), "minItems": 1, "maxItems": choose.randint(1, 2)}
    return {
        "enum": {"enum": choose.sample(["x", "two words", 3, None, True, "\n", 1.5], 3)},
        "integer": {"type": "integer", "minimum": choose.randint(-20, 0), "maximum": choose.randint(0, 300)},
        "boolean": {"type": "boolean"}, "string": {"type": "string", "maxLength": choose.randint(1, 4)},
        "any": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{1,3}$"}]},
    }[kind]  # fmt: skip


async def test_structured_output_is_of_its_schema(
    running: RunningServer, model: str, request: pytest.FixtureRequest
) -> None:
    """20 random schemas, 300 in the long form, through chat whole and streamed."""
    choose = random.Random(5)
    schemas = [schema_of(choose) for _ in range(300 if request.config.getoption("--fuzz") else 20)]
    room = asyncio.Semaphore(4)
    async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0) as client:

        async def one(number: int, schema: Any) -> bool:
            form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
            asked: Any = {
                "model": model, "messages": QUESTION, "response_format": form, "max_tokens": 40,
                "temperature": 1.0,
            }  # fmt: skip
            async with room:
                if number % 2:
                    stream = await client.chat.completions.create(stream=True, **asked)
                    choices = [chunk.choices[0] async for chunk in stream]
                    text = "".join(choice.delta.content or "" for choice in choices)
                    reason = choices[-1].finish_reason
                else:
                    choice = (await client.chat.completions.create(**asked)).choices[0]
                    text, reason = choice.message.content or "", choice.finish_reason
            if reason != "length":
                jsonschema.validate(json.loads(text), schema)
            return reason == "stop"

        whole = await asyncio.gather(*(one(number, schema) for number, schema in enumerate(schemas)))
    assert sum(whole) > len(schemas) / 2


def test_patterns_and_objects(client: openai.OpenAI, model: str) -> None:
    text = chat(client, model, extra_body={"guided_regex": "(19|20)[0-9]{2}"}).choices[0].message.content
    assert len(text) == 4 and text.isdigit()
    # Hundreds of ways to read a text: as they stand, they stop llama.cpp for minutes.
    words = chat(client, model, extra_body={"guided_regex": "(([a-z]+)? ?([a-z]+)?){1,300}"}, timeout=20)
    assert re.fullmatch("[a-z ]+", words.choices[0].message.content)
    answer = chat(client, model, response_format={"type": "json_object"}, max_tokens=30).choices[0]
    assert answer.finish_reason == "length" or isinstance(json.loads(answer.message.content), dict)


async def test_random_cancels_leave_nothing(running: RunningServer, request: pytest.FixtureRequest) -> None:
    """60, or 1,000 in the long form: closed at random moments, streamed or not, of one to three choices."""
    choose = random.Random(9)
    count = 1000 if request.config.getoption("--chaos") else 60
    room = asyncio.Semaphore(10)
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:

        async def one() -> None:
            body: dict[str, Any] = {
                "model": "llamacpp", "messages": QUESTION, "n": choose.randint(1, 3), "max_tokens": 100,
                "stream": choose.random() < 0.6,
            }  # fmt: skip
            if choose.random() < 0.4:
                body["guided_regex"] = "[a-z ]{200}"
            async with room:
                try:
                    async with asyncio.timeout(choose.choice((0.0, 0.01, 0.05, 0.2, 0.5))):
                        await client.post("/v1/chat/completions", json=body)
                except TimeoutError:
                    pass

        await asyncio.gather(*(one() for _ in range(count)))
        for _ in range(300):
            text = (await client.get("/metrics")).text
            held = [line for line in text.splitlines() if 'model_name="llamacpp"' in line
                    and line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting"))]  # fmt: skip
            statistics = (await client.get("/v2/models/llamacpp/stats")).json()
            if held and all(line.endswith(" 0.0") for line in held):
                break
            await asyncio.sleep(0.1)
        assert held and all(line.endswith(" 0.0") for line in held), (held, statistics)
        body = {"model": "llamacpp", "messages": QUESTION, "max_tokens": 3, "temperature": 0}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"llamacpp","messages":' + b"[" * 5000, b'{"model":"llamacpp","messages":[' + b"{" * 200,
        b'{"model":"llamacpp","prompt":"\\ud800"}', b'{"model":"llamacpp","messages":[{"role":"user","content":"\\udfff"}]}',
        b'{"model":"llamacpp","prompt":"a","stop":["","","","",""]}',
        b'{"model":"llamacpp","prompt":"a","guided_regex":"(a{1000}){1000}{1000}"}',
        b'{"model":"llamacpp","prompt":"a","max_tokens":1,"logit_bias":{%b}}'
        % b",".join(b'"%d":1' % token for token in range(200_000)),
        b'{"model":"llamacpp","messages":[%b]}' % b",".join([b'{"role":"user","content":"a"}'] * 100_000),
        b'{"model":"llamacpp","prompt":"a","guided_json":{"$ref":"#/a","a":{"$ref":"#"}}}',
        b'{"model":"llamacpp","prompt":"a","guided_json":{"type":"string","minLength":99999999}}',
        b'{"model":"llamacpp","prompt":"a","guided_grammar":"root ::= root root"}',
        b'{"model":"llamacpp","prompt":[-1]}', b'{"model":"llamacpp","prompt":[99999999]}',
        b'{"model":"llamacpp","prompt":1e400}', b'{"model":"llamacpp","prompt":""}',
    ],
    ids=range(15),
)  # fmt: skip
def test_hostile_bodies_are_refused(running: RunningServer, body: bytes) -> None:
    route = "chat/completions" if b'"messages"' in body[:40] else "completions"
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"{running.http}/v1/{route}", content=body)
        assert 400 <= answer.status_code < 500, answer.text[:300]
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert len(answer.content) < 4096
