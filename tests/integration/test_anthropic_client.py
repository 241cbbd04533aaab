"""The official client against a real server, sync, async and streaming."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

KEY = "a key for these tests"
TOOL: Any = {
    "name": "weather", "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
                     "required": ["city"], "additionalProperties": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def running(shared_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("echo") / "echo.llmecho"
    path.touch()
    slow = {"path": str(path), "options": {"delay_s": 0.05}}
    return shared_server({"echo": str(path), "slow": slow, "mortal": str(path)}, api_key=KEY)


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.http, api_key=KEY, max_retries=0) as found:
        yield found


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_an_answer(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="echo", max_tokens=64, messages=user("say:hello"), system="Be brief")
    assert answer.content[0].type == "text" and answer.content[0].text == "hello"
    assert answer.stop_reason == "end_turn" and answer.usage.output_tokens == 6 and answer.usage.input_tokens > 0
    assert answer._request_id is not None and answer._request_id.startswith("req_")
    short = client.messages.create(model="echo:1", max_tokens=2, messages=user("say:hello"))
    assert short.stop_reason == "max_tokens"
    stopped = client.messages.create(model="echo", max_tokens=64, messages=user("say:hello"), stop_sequences=["lo"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "lo")
    assert stopped.content[0].type == "text" and stopped.content[0].text == "hel"


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="echo", max_tokens=64, messages=user("say:héllo")) as stream:
        assert "".join(stream.text_stream) == "héllo"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == 7 and final.id.startswith("msg_")
    with client.messages.create(model="echo", max_tokens=9, messages=user("say:a"), stream=True) as events:
        assert [event.type for event in events] == [
            "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
            "message_stop",
        ]  # fmt: skip


async def test_the_asynchronous_client(running: Any) -> None:
    async with anthropic.AsyncAnthropic(base_url=running.http, api_key=KEY) as client:
        async with client.messages.stream(model="echo", max_tokens=64, messages=user("say:abc")) as stream:
            assert "".join([text async for text in stream.text_stream]) == "abc"
        answer = await client.messages.create(model="echo", max_tokens=64, messages=user("say:abc"))
        assert answer.content[0].type == "text" and answer.content[0].text == "abc"


def test_a_bearer_token_is_a_key_too(running: Any) -> None:
    with anthropic.Anthropic(base_url=running.http, auth_token=KEY, max_retries=0) as client:
        assert client.messages.create(model="echo", max_tokens=9, messages=user("say:a")).stop_reason == "end_turn"


def test_calls_of_tools(client: anthropic.Anthropic) -> None:
    said = 'say:<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    answer = client.messages.create(model="echo", max_tokens=256, messages=user(said), tools=[TOOL])
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and (call.name, call.input) == ("weather", {"city": "Oslo"})
    with client.messages.stream(model="echo", max_tokens=256, messages=user(said), tools=[TOOL]) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert "".join(pieces).replace(" ", "") == '{"city":"Oslo"}' and final.stop_reason == "tool_use"
    (streamed,) = [block for block in final.content if block.type == "tool_use"]
    assert streamed.input == {"city": "Oslo"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    turns = [*user(said), {"role": "assistant", "content": answer.content}, {"role": "user", "content": [
        result, {"type": "text", "text": "say:rain"}]}]  # fmt: skip
    after = client.messages.create(model="echo", max_tokens=64, messages=turns, tools=[TOOL])
    assert after.content[0].type == "text" and after.content[0].text == "rain"


def test_counting_tokens(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="echo", messages=user("say:hello"), system="Be brief", tools=[TOOL])
    asked = client.messages.create(
        model="echo", max_tokens=9, messages=user("say:hello"), system="Be brief", tools=[TOOL]
    )
    assert counted.input_tokens == asked.usage.input_tokens + (asked.usage.cache_read_input_tokens or 0)


def test_models_are_listed_as_openai_does(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "mortal", "slow"]
    assert client.models.retrieve("echo").id == "echo"


def test_errors(client: anthropic.Anthropic, running: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        client.messages.create(model="nobody", max_tokens=9, messages=user("a"))
    with pytest.raises(anthropic.BadRequestError, match="image"):
        image: Any = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
        client.messages.create(model="echo", max_tokens=9, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.BadRequestError, match="context"):
        client.messages.create(model="echo", max_tokens=9, messages=user("x" * 5000))
    with (
        anthropic.Anthropic(base_url=running.http, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="echo", max_tokens=9, messages=user("a"))


def test_an_engine_that_dies_ends_the_stream_with_an_error(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "mortal", "max_tokens": 64, "messages": user("die:hello")}
    with pytest.raises(anthropic.APIStatusError) as lost, client.messages.stream(**asked) as stream:
        for _ in stream.text_stream:
            pass
        stream.get_final_message()
    assert isinstance(lost.value.body, dict) and lost.value.body["type"] == "error"


def test_real_weights(server: Any, smollm2: Path) -> None:
    running = server(
        {"smollm2": {"path": str(smollm2), "threads": 1, "options": {"engine": "llamacpp", "context_tokens": 2048}}}
    )
    with anthropic.Anthropic(base_url=running.http, api_key="none", max_retries=0) as client:
        with client.messages.stream(model="smollm2", max_tokens=12, messages=user("Say a word")) as stream:
            streamed = "".join(stream.text_stream)
        whole = client.messages.create(
            model="smollm2", max_tokens=12, messages=user("Say a word"), extra_body={"temperature": 0}
        )
        assert streamed and whole.content[0].type == "text"
        called = client.messages.create(
            model="smollm2", max_tokens=40, messages=user("The weather of Oslo?"), tools=[TOOL],
            tool_choice={"type": "tool", "name": "weather"},
        )  # fmt: skip
        if called.stop_reason == "tool_use":
            (block,) = called.content
            assert block.type == "tool_use" and set(block.input) == {"city"}
