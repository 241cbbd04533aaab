"""The official client's Responses against a real server, sync, async and streaming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

KEY = "a key for these tests"
TOOL: Any = {
    "type": "function", "name": "weather", "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def running(shared_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("echo") / "echo.llmecho"
    path.touch()
    return shared_server({"echo": str(path), "mortal": str(path)}, api_key=KEY)


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def test_an_answer(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="echo", input="say:hello", instructions="Be brief")
    assert answer.output_text == "hello" and answer.status == "completed" and answer.error is None
    assert answer.usage is not None and answer.usage.output_tokens == 6
    short = client.responses.create(model="echo", input="say:hello", max_output_tokens=2)
    assert short.status == "incomplete" and short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens" and short.output_text == "he"


def test_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="say:héllo") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "héllo" and kinds[0] == "response.created" and kinds[-1] == "response.completed"
    events = list(client.responses.create(model="echo", input="say:ab", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "ab"


async def test_the_asynchronous_client(running: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key=KEY) as client:
        assert (await client.responses.create(model="echo", input="say:abc")).output_text == "abc"
        async with client.responses.stream(model="echo", input="say:abc") as stream:
            assert (await stream.get_final_response()).output_text == "abc"


def test_calls_of_functions_and_their_outputs(client: openai.OpenAI) -> None:
    said = 'say:<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    answer = client.responses.create(model="echo", input=said, tools=[TOOL])
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather" and call.arguments.replace(" ", "") == '{"city":"Oslo"}'
    turns: list[Any] = [
        {"role": "user", "content": said}, call, {"type": "function_call_output", "call_id": call.call_id, "output": "x"},
        {"role": "user", "content": "say:rain"},
    ]  # fmt: skip
    assert client.responses.create(model="echo", input=turns, tools=[TOOL]).output_text == "rain"
    with client.responses.stream(model="echo", input=said, tools=[TOOL]) as stream:
        final = stream.get_final_response()
    assert [item.arguments.replace(" ", "") for item in final.output if item.type == "function_call"] == [
        '{"city":"Oslo"}'
    ]


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="a")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="echo", input="a", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_an_engine_that_dies_ends_the_stream_with_an_error(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="mortal", input="die:hello", stream=True)
    with pytest.raises(openai.APIError):
        for event in stream:
            assert event.type != "response.completed"


CITY: Any = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "people": {"enum": [1, 2]}},
    "required": ["name", "people"], "additionalProperties": False,
}  # fmt: skip


class Said(BaseModel):
    word: str


def test_parsing_into_a_class(client: openai.OpenAI) -> None:
    """The echo engine takes no grammar, which is said and not passed over."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.parse(model="echo", input='say:{"word":"a"}', text_format=Said)
    assert refused.value.param == "text.format"


def test_real_weights(server: Any, smollm2: Path) -> None:
    options = {"engine": "llamacpp", "context_tokens": 2048}
    running = server({"smol": {"path": str(smollm2), "threads": 1, "options": options}})
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0) as client:
        greedy: Any = {"model": "smol", "input": "Say a word", "max_output_tokens": 8, "temperature": 0}
        whole = client.responses.create(**greedy)
        streamed = client.responses.create(**greedy, stream=True)
        texts = [event.delta for event in streamed if event.type == "response.output_text.delta"]
        assert "".join(texts) == whole.output_text != ""
        chat = client.chat.completions.create(
            model="smol", messages=[{"role": "user", "content": "Say a word"}], max_tokens=8, temperature=0
        )
        assert chat.choices[0].message.content == whole.output_text
        form: Any = {
            "type": "json_schema", "name": "city", "schema": CITY,
        }  # fmt: skip
        held = client.responses.create(model="smol", input="A city", text={"format": form}, max_output_tokens=24)
        if held.status == "completed":
            assert set(json.loads(held.output_text)) == {"name", "people"}
        else:
            assert held.output_text.startswith('{"name":"')
