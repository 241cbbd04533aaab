"""What the official clients' own helpers make of answers that a grammar holds to a form, with a real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from running_server import RunningServer, ServerFactory

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=24)
    country: str = Field(max_length=24)
    size: Literal["small", "large"]


class Weather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=24)
    unit: Literal["celsius", "fahrenheit"]


GREEDY = {"temperature": 0}  # the client knows no such parameter any more
ASKED: list[Any] = [{"role": "user", "content": "Tell me of the city of Paris."}]


@pytest.fixture(scope="module")
def running(shared_server: ServerFactory, smollm2: Path) -> RunningServer:
    options = {"engine": "llamacpp", "context_tokens": 2048, "max_running": 2, "kv_cache_bytes": 64 << 20}
    return shared_server({"m": {"path": str(smollm2), "options": options}})


@pytest.fixture
def client(running: RunningServer) -> OpenAI:
    return OpenAI(base_url=running.http + "/v1", api_key="none", max_retries=0)


def test_chat_parse_gives_the_class(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="m", messages=ASKED, response_format=City, max_tokens=120, temperature=0
    )
    found = answer.choices[0].message.parsed
    assert isinstance(found, City) and found.size in ("small", "large")
    assert json.loads(answer.choices[0].message.content or "") == found.model_dump()


def test_chat_parse_of_an_answer_that_was_cut_says_so(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="m", messages=ASKED, response_format=City, max_tokens=4, temperature=0)


def test_chat_parse_of_a_tool(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather, name="weather")
    answer = client.chat.completions.parse(
        model="m", messages=ASKED, tools=[tool], tool_choice="required", max_tokens=120, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather" and isinstance(call.function.parsed_arguments, Weather)


def test_chat_stream_parses_as_it_comes(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="m", messages=ASKED, response_format=City, max_tokens=120, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(found, City) and kinds.count("content.done") == 1 and "content.delta" in kinds


def test_chat_stream_of_an_answer_that_was_cut_says_so(client: OpenAI) -> None:
    with (
        pytest.raises(openai.LengthFinishReasonError),
        client.chat.completions.stream(model="m", messages=ASKED, response_format=City, max_tokens=4) as stream,
    ):
        for _ in stream:
            pass


async def test_asynchronous_parse_is_the_same(running: RunningServer) -> None:
    async with AsyncOpenAI(base_url=running.http + "/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.parse(
            model="m", messages=ASKED, response_format=City, max_tokens=120, temperature=0
        )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_responses_parse_gives_the_class(client: OpenAI) -> None:
    answer = client.responses.parse(
        model="m", input="Tell me of the city of Paris.", text_format=City, max_output_tokens=120, temperature=0
    )
    assert isinstance(answer.output_parsed, City) and answer.status == "completed"


def test_responses_parse_of_an_answer_that_was_cut_is_no_class(client: OpenAI) -> None:
    """The helper reads the text whatever the status is, and fails on it as it does with OpenAI's own answers."""
    raw = client.responses.with_raw_response.parse(
        model="m", input="Tell me of Paris.", text_format=City, max_output_tokens=4, temperature=0
    )
    body = json.loads(raw.text)
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    with pytest.raises(ValueError, match="City"):
        raw.parse()


def test_responses_parse_of_a_tool(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather, name="weather")["function"]
    answer = client.responses.parse(
        model="m", input="The weather in Paris?", tool_choice="required", max_output_tokens=120, temperature=0,
        tools=[{"type": "function", "name": "weather", "parameters": tool["parameters"], "strict": True}],
    )  # fmt: skip
    (call,) = (item for item in answer.output if item.type == "function_call")
    assert call.parsed_arguments and Weather.model_validate(call.parsed_arguments)


def test_anthropic_uses_the_tool_it_was_told_to(running: RunningServer) -> None:
    client = anthropic.Anthropic(base_url=running.http, api_key="none", max_retries=0)
    tool: Any = {"name": "city", "description": "A city", "input_schema": City.model_json_schema()}
    choice: Any = {"type": "tool", "name": "city"}
    answer = client.messages.create(
        model="m", max_tokens=120, messages=ASKED, tools=[tool], tool_choice=choice, extra_body=GREEDY
    )
    (used,) = (block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use" and City.model_validate(used.input)
    cut = client.messages.create(
        model="m", max_tokens=4, messages=ASKED, tools=[tool], tool_choice=choice, extra_body=GREEDY
    )
    assert cut.stop_reason == "max_tokens"


def test_anthropic_parse_gives_the_class(running: RunningServer) -> None:
    client = anthropic.Anthropic(base_url=running.http, api_key="none", max_retries=0)
    answer = client.messages.parse(model="m", max_tokens=120, messages=ASKED, output_format=City, extra_body=GREEDY)
    assert isinstance(answer.parsed_output, City) and answer.stop_reason == "end_turn"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gives_the_class(running: RunningServer, method: Any) -> None:
    chat = ChatOpenAI(
        base_url=running.http + "/v1", api_key="none", model="m", temperature=0, max_tokens=120, max_retries=0
    )
    found = chat.with_structured_output(City, method=method).invoke("Tell me of the city of Paris.")
    assert isinstance(found, City)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_does_not_take_a_part_for_the_whole(running: RunningServer, method: Any) -> None:
    chat = ChatOpenAI(
        base_url=running.http + "/v1", api_key="none", model="m", temperature=0, max_tokens=4, max_retries=0
    )
    try:
        found = chat.with_structured_output(City, method=method).invoke("Tell me of the city of Paris.")
    except Exception:
        return  # each method has errors of its own
    assert found is None
