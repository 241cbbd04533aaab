from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from http_calls import Calls, header_of, json_of
from scripted_language import BEGAN, CARD, HELLO, USAGE, Script, ScriptDoor, pieces_of

from penstock.core.errors import NotReady, Overloaded, PenstockError, QuotaExceeded, ServableError, TooLarge, WorkerLost
from penstock.core.language import (
    Event,
    Finished,
    Format,
    Message,
    Reasoning,
    Text,
    ToolCall,
    ToolCallPart,
    Usage,
)
from penstock.protocols.anthropic_http import plug
from penstock.protocols.anthropic_http.reading import HARMLESS, KNOWN, REFUSED

USER = [{"role": "user", "content": "hi"}]
TOOL = {"name": "look", "description": "Looks", "input_schema": {"type": "object"}}


class Messages:
    def __init__(self) -> None:
        self.script = Script([HELLO])
        self.calls = Calls([plug], ScriptDoor(self.script))

    async def __call__(self, path: str = "/v1/messages", headers: Any = None, **body: Any) -> Any:
        body = {"model": "m", "max_tokens": 9, "messages": USER, **body}
        body = {name: value for name, value in body.items() if value is not ...}
        return await self.calls("POST", path, orjson.dumps(body), headers)

    async def asked(self, **body: Any) -> Any:
        answer = await self(**body)
        assert getattr(answer, "status", 200) == 200, answer
        return self.script.asks[-1]

    async def refused(self, status: int = 400, **body: Any) -> str:
        answer = await self(**body)
        assert answer.status == status, answer
        document = json_of(answer)
        assert set(document) == {"type", "error", "request_id"} and document["type"] == "error"
        assert document["request_id"] == header_of(answer, "request-id")
        if status == 400:
            assert document["error"]["type"] == "invalid_request_error"
        return str(document["error"]["message"])

    async def events(self, **body: Any) -> list[Any]:
        """The data of a stream's events; each event's name is checked to be its data's type."""
        sent = await pieces_of(await self(stream=True, **body))
        found = []
        for event in sent.decode().removesuffix("\n\n").split("\n\n"):
            name, data = event.split("\n")
            found.append(orjson.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
        return found


@pytest.fixture
def messages() -> Messages:
    return Messages()


# Answers


async def test_an_answer_in_one_piece(messages: Messages) -> None:
    answer = await messages()
    document = json_of(answer)
    assert document.pop("id").startswith("msg_") and str(header_of(answer, "request-id")).startswith("req_")
    assert document == {
        "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": 'Hé"llo'}],
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {
            "input_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3, "output_tokens": 2,
            "output_tokens_details": {"thinking_tokens": 1},
        },
    }  # fmt: skip


async def test_a_stream(messages: Messages) -> None:
    start, ping, begun, one, two, ended, delta, stop = await messages.events()
    assert start["message"]["content"] == [] and start["message"]["usage"]["input_tokens"] == 5
    assert ping == {"type": "ping"} and stop == {"type": "message_stop"}
    assert begun == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert [one["delta"], two["delta"]] == [{"type": "text_delta", "text": text} for text in ("Hé", '"llo')]
    assert ended == {"type": "content_block_stop", "index": 0}
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 2 and delta["usage"]["cache_read_input_tokens"] == 3


BLOCKS: list[Event | PenstockError] = [
    BEGAN, Reasoning(0, "so"), Reasoning(0, "…"), Text(0, "I look."), ToolCallPart(0, 0, "c1", "look"),
    ToolCallPart(0, 0, arguments='{"a"'), ToolCallPart(0, 0, arguments=":1}"), ToolCallPart(0, 1, "c2", "look", "{}"),
    Finished(0, "tool_calls"), USAGE,
]  # fmt: skip


async def test_thoughts_text_and_calls_are_blocks(messages: Messages) -> None:
    messages.script.answers = [BLOCKS]
    document = json_of(await messages(tools=[TOOL]))
    assert document["stop_reason"] == "tool_use"
    assert document["content"] == [
        {"type": "thinking", "thinking": "so…", "signature": ""}, {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
    ]  # fmt: skip
    events = await messages.events(tools=[TOOL])
    starts = [event for event in events if event["type"] == "content_block_start"]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert [event["content_block"]["type"] for event in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert [event["index"] for event in starts] == stops == [0, 1, 2, 3]
    assert starts[2]["content_block"] == {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert "".join(event["delta"].get("partial_json", "") for event in deltas if event["index"] == 2) == '{"a":1}'
    assert deltas[2]["delta"] == {"type": "signature_delta", "signature": ""}


async def test_omitted_thoughts_are_empty(messages: Messages) -> None:
    messages.script.card = replace(CARD, reasons=True)
    messages.script.answers = [BLOCKS]
    answer = await messages(thinking={"type": "adaptive", "display": "omitted"})
    assert json_of(answer)["content"][0]["thinking"] == ""


@pytest.mark.parametrize(
    ("finished", "reason", "sequence"),
    [
        (Finished(0, "stop", "END"), "stop_sequence", "END"), (Finished(0, "length"), "max_tokens", None),
        (Finished(0, "content_filter"), "refusal", None), (Finished(0, "stop"), "end_turn", None),
    ],
)  # fmt: skip
async def test_stop_reasons(messages: Messages, finished: Finished, reason: str, sequence: str | None) -> None:
    messages.script.answers = [[BEGAN, Text(0, "a"), finished, USAGE]]
    document = json_of(await messages())
    assert (document["stop_reason"], document["stop_sequence"]) == (reason, sequence)
    delta = (await messages.events())[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == (reason, sequence)


async def test_an_answer_without_a_word(messages: Messages) -> None:
    messages.script.answers = [[BEGAN, Finished(0, "stop"), USAGE]]
    assert json_of(await messages())["content"] == []
    assert [event["type"] for event in await messages.events()] == [
        "message_start", "ping", "message_delta", "message_stop",
    ]  # fmt: skip


async def test_a_call_that_was_cut_off_is_no_half_object(messages: Messages) -> None:
    messages.script.answers = [[BEGAN, ToolCallPart(0, 0, "c", "look", '{"a'), Finished(0, "length"), USAGE]]
    document = json_of(await messages(tools=[TOOL]))
    assert document["stop_reason"] == "max_tokens" and document["content"][0]["input"] == {}
    messages.script.answers = [[BEGAN, ToolCallPart(0, 0, "c", "look", '{"a'), Finished(0, "stop", "x"), USAGE]]
    document = json_of(await messages(tools=[TOOL], stop_sequences=["x"]))
    assert document["stop_reason"] == "stop_sequence" and document["content"][0]["input"] == {}


async def test_cached_tokens_that_nobody_knows_count_as_read(messages: Messages) -> None:
    messages.script.answers = [[BEGAN, Text(0, "a"), Finished(0, "stop"), Usage(5, 2, cached_tokens=-1)]]
    usage = json_of(await messages())["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 0)


# What is asked


async def test_everything_reaches_the_ask(messages: Messages) -> None:
    ask = await messages.asked(
        system="Be brief", temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["END"], tools=[TOOL], priority=2,
        tool_choice={"type": "tool", "name": "look", "disable_parallel_tool_use": True}, metadata={"user_id": "u"},
        seed=4,
    )  # fmt: skip
    assert list(ask.messages) == [Message("system", "Be brief"), Message("user", "hi")]
    sampling = ask.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 3, 4)
    assert ask.stop == ("END",) and ask.max_tokens == 9 and ask.tool_choice == "=look" and ask.priority == 2
    assert ask.tools[0].parameters == {"type": "object"} and not ask.parallel_tool_calls
    assert ask.id.startswith("msg_") and not ask.continue_last and ask.add_generation_prompt


@pytest.mark.parametrize(("choice", "ours"), [("auto", "auto"), ("any", "required"), ("none", "none")])
async def test_tool_choices(messages: Messages, choice: str, ours: str) -> None:
    assert (await messages.asked(tools=[TOOL], tool_choice={"type": choice})).tool_choice == ours


async def test_a_conversation_with_tools(messages: Messages) -> None:
    ask = await messages.asked(
        tools=[TOOL],
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
        messages=[
            {"role": "user", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "é"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "gone"}],
                 "is_error": True},
                {"type": "text", "text": "so?"},
            ]},
        ],
    )  # fmt: skip
    assert list(ask.messages) == [
        Message("system", "a\n\nb"), Message("user", "one\n\ntwo"),
        Message("assistant", "I look.", reasoning="hm", tool_calls=(ToolCall("c1", "look", '{"at":"é"}'),)),
        Message("tool", "Error: gone", tool_call_id="c1"), Message("user", "so?"),
    ]  # fmt: skip


async def test_an_answers_beginning_is_continued(messages: Messages) -> None:
    ask = await messages.asked(messages=[*USER, {"role": "assistant", "content": "It is ("}])
    assert ask.continue_last and not ask.add_generation_prompt and ask.messages[-1].content == "It is ("


async def test_forms_of_the_output(messages: Messages) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    for body in ({"output_config": {"format": form}}, {"output_format": form}):
        assert (await messages.asked(**body)).format == Format("json_schema", {"type": "object"})
    assert (await messages.asked(output_config={"effort": "max"})).reasoning == "high"


async def test_thinking(messages: Messages) -> None:
    enabled = {"type": "enabled", "budget_tokens": 2048}
    assert "does not think" in await messages.refused(thinking=enabled, max_tokens=4096)
    assert (await messages.asked(thinking={"type": "disabled"})).reasoning == "none"
    messages.script.card = replace(CARD, reasons=True)
    answer = await messages(thinking=enabled, max_tokens=4096)
    assert messages.script.asks[-1].reasoning == "low"
    assert header_of(answer, "penstock-ignored") == "thinking.budget_tokens"
    assert "budget_tokens" in await messages.refused(thinking=enabled, max_tokens=2048)
    assert (await messages.asked(thinking={"type": "adaptive"})).reasoning == ""


async def test_counting_tokens(messages: Messages) -> None:
    answer = await messages("/v1/messages/count_tokens", max_tokens=..., system="s", tools=[TOOL])
    assert json_of(answer) == {"input_tokens": len("system:s|user:hi")}
    assert messages.script.asks[-1].tools[0].name == "look"


async def test_tokens_are_counted_as_they_are_asked(messages: Messages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control texts of users are text, so the ids of a prompt are not those of its rendered text."""
    ids = [1, 2, 3]

    async def prompt_ids(ask: object) -> list[int]:
        return ids

    monkeypatch.setattr(messages.script, "prompt_ids", prompt_ids)
    assert json_of(await messages("/v1/messages/count_tokens", max_tokens=...)) == {"input_tokens": 3}


# What is refused


IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"max_tokens": ...}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"),
        ({"messages": ...}, "messages"), ({"temperature": 1.5}, "temperature"), ({"top_p": 2}, "top_p"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image'"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*USER, {"role": "assistant", "content": "a "}]}, "trailing whitespace"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "tool_use_id"),
        ({"messages": [*USER, {"role": "assistant", "content": [
            {"type": "tool_use", "id": "i", "name": "n", "input": {}}]}]}, "results"),
        ({"messages": [*USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n"}]}]},
         "messages[1].content[0].input"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"), ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"), ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"container": "c"}, "container"), ({"speed": "fast"}, "speed"), ({"temprature": 1}, "temperature"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"), ({"n": 2}, "n: Extra inputs"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(messages: Messages, body: dict[str, Any], named: str) -> None:
    assert named in await messages.refused(**body)
    assert messages.script.asks == []


async def test_what_asks_for_nothing_is_let_in(messages: Messages) -> None:
    await messages.asked(speed="standard", mcp_servers=[], service_tier="auto", cache_control={"type": "ephemeral"})
    assert not HARMLESS & set(REFUSED) and not HARMLESS & set(KNOWN) and not set(REFUSED) & set(KNOWN)


async def test_versions_of_the_api(messages: Messages) -> None:
    for version in ("2023-06-01", "2026-10-21"):
        assert (await messages(headers={"anthropic-version": version}, temperature=0.5)).status == 200
    assert "anthropic-version" in await messages.refused(headers={"anthropic-version": "2023-01-01"})


@pytest.mark.parametrize(
    ("error", "status", "kind", "again"),
    [
        (Overloaded("full"), 503, "overloaded_error", None), (NotReady("soon"), 503, "overloaded_error", None),
        (QuotaExceeded("used", retry_after_s=2.5), 429, "rate_limit_error", None),
        (TooLarge("long"), 400, "invalid_request_error", None), (ServableError("bad"), 500, "api_error", "false"),
        (WorkerLost("gone", begun=True), 503, "api_error", "false"), (WorkerLost("gone", begun=False), 503, "api_error", None),
    ],
)  # fmt: skip
async def test_errors(messages: Messages, error: PenstockError, status: int, kind: str, again: str | None) -> None:
    messages.script.answers = [[error]]
    answer = await messages()
    assert answer.status == status and json_of(answer)["error"] == {"type": kind, "message": error.message}
    assert header_of(answer, "x-should-retry") == again
    if status in (429, 503):
        assert header_of(answer, "retry-after-ms") == ("2500" if status == 429 else "1000")


async def test_an_unknown_model_is_not_found(messages: Messages) -> None:
    answer = await messages(model="nobody")
    assert answer.status == 404 and json_of(answer)["error"]["type"] == "not_found_error"


async def test_a_stream_that_fails_ends_with_an_error(messages: Messages) -> None:
    messages.script.answers = [[BEGAN, Text(0, "a"), WorkerLost("the engine died")]]
    *_, last = await messages.events()
    assert last["type"] == "error" and last["error"]["type"] == "api_error" and last["request_id"].startswith("req_")
    assert messages.script.closed == 1


async def test_events_that_end_too_early_are_no_clean_end(messages: Messages) -> None:
    messages.script.answers = [[BEGAN, Text(0, "a")]]
    assert (await messages.events())[-1]["type"] == "error"
    assert (await messages()).status == 500


def test_the_page_names_every_parameter_and_route() -> None:
    page = (Path(__file__).parents[2] / "docs" / "anthropic.md").read_text()
    assert {name for name in (*KNOWN, *HARMLESS, *REFUSED) if f"`{name}`" not in page} == set()
    assert all(route.pattern in page for route in plug.routes())
