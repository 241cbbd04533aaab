from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai.types.responses
import orjson
import pytest
from http_calls import Calls, header_of, json_of
from scripted_language import BEGAN, HELLO, USAGE, Script, ScriptDoor, pieces_of

from penstock.core.errors import NotFound, Overloaded, PenstockError, WorkerLost
from penstock.core.language import (
    Event,
    Finished,
    Format,
    Message,
    Reasoning,
    Text,
    TextToken,
    ToolCall,
    ToolCallPart,
)
from penstock.protocols.openai_http import parameters, plug, responses
from penstock.runtime.language.kept_responses import KEEP_S, ResponseBounds
from penstock.runtime.language.response_keeper import ResponseKeeper
from penstock.runtime.language.shelves import MemoryShelf

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}


class KeepingDoor(ScriptDoor):
    """Keeps answers as a server without a folder does."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.now = [1_700_000_000.0]
        self.keeper = ResponseKeeper(plug.wishes(self), MemoryShelf(), lambda: self.now[0])

    def responses(self) -> ResponseKeeper:
        return self.keeper


class Responses:
    def __init__(self) -> None:
        self.script = Script([HELLO])
        self.door = KeepingDoor(self.script)
        self.calls = Calls([plug], self.door)

    async def __call__(self, **body: Any) -> Any:
        return await self.calls("POST", "/v1/responses", json.dumps({"model": "m", "input": "hi", **body}).encode())

    async def asked(self, **body: Any) -> Any:
        answer = await self(**body)
        assert getattr(answer, "status", 200) == 200, answer
        return self.script.asks[-1]

    async def events(self, **body: Any) -> list[Any]:
        """The data of a stream's events, whose names and numbers are checked."""
        sent = await pieces_of(await self(stream=True, **body))
        found = []
        for event in sent.decode().removesuffix("\n\n").split("\n\n"):
            name, data = event.split("\n")
            found.append(orjson.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}" and found[-1]["sequence_number"] == len(found) - 1
        return found


@pytest.fixture
def respond() -> Responses:
    return Responses()


async def test_an_answer_in_one_piece(respond: Responses) -> None:
    document = json_of(await respond(instructions="Be brief", metadata={"a": "b"}, max_output_tokens=7))
    assert document["id"].startswith("resp_") and document["object"] == "response"
    assert (document["status"], document["store"], document["error"]) == ("completed", True, None)
    (item,) = document["output"]
    assert item["content"] == [{"type": "output_text", "text": 'Hé"llo', "annotations": [], "logprobs": []}]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert document["usage"]["input_tokens_details"]["cached_tokens"] == 3 and document["usage"]["total_tokens"] == 7
    assert document["metadata"] == {"a": "b"} and document["max_output_tokens"] == 7
    ask = respond.script.asks[-1]
    assert list(ask.messages) == [Message("system", "Be brief"), Message("user", "hi")] and ask.max_tokens == 7


async def test_the_events_of_a_message(respond: Responses) -> None:
    events = await respond.events()
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[6]["text"] == 'Hé"llo' and events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


MANY: list[Event | PenstockError] = [
    BEGAN, Reasoning(0, "hm"), Text(0, "I look."), ToolCallPart(0, 0, "c1", "look"), ToolCallPart(0, 0, arguments='{"a":'),
    ToolCallPart(0, 0, arguments="1}"), ToolCallPart(0, 1, "c2", "look", "{}"), Finished(0, "tool_calls"), USAGE,
]  # fmt: skip


async def test_reasoning_and_calls_are_items(respond: Responses) -> None:
    respond.script.answers = [MANY]
    output = json_of(await respond(tools=[TOOL]))["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "hm"}] and output[0]["summary"] == []
    assert (output[2]["call_id"], output[2]["name"], output[2]["arguments"]) == ("c1", "look", '{"a":1}')
    events = await respond.events(tools=[TOOL])
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == [event["output_index"] for event in done] == [0, 1, 2, 3]
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == '{"a":1}{}'
    assert [event["item"]["id"] for event in added] == [event["item"]["id"] for event in done]


async def test_an_answer_that_was_cut_off_is_incomplete(respond: Responses) -> None:
    respond.script.answers = [[BEGAN, Text(0, "a"), Finished(0, "length"), USAGE]]
    document = json_of(await respond())
    assert document["status"] == "incomplete" and document["incomplete_details"] == {"reason": "max_output_tokens"}
    assert document["output"][0]["status"] == "incomplete"
    assert (await respond.events())[-1]["type"] == "response.incomplete"


async def test_logprobs(respond: Responses) -> None:
    token = TextToken(1, "a", b"a", -0.5, ((1, "a", b"a", -0.5),))
    respond.script.answers = [[BEGAN, Text(0, "a", (token,)), Finished(0, "stop"), USAGE]]
    found = json_of(await respond(include=["message.output_text.logprobs"], top_logprobs=1))
    assert found["output"][0]["content"][0]["logprobs"][0]["bytes"] == [97] and respond.script.asks[-1].logprobs == 1


async def test_a_conversation_of_items(respond: Responses) -> None:
    ask = await respond.asked(
        tools=[TOOL],
        input=[
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "gone"},
        ],
    )
    assert list(ask.messages) == [
        Message("developer", "d"), Message("user", "u"),
        Message("assistant", "I look.", reasoning="hm", tool_calls=(ToolCall("c1", "look", "{}"),)),
        Message("tool", "gone", tool_call_id="c1"),
    ]  # fmt: skip


async def test_everything_else_reaches_the_ask(respond: Responses) -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    ask = await respond.asked(
        tools=[TOOL], tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False, temperature=0.5,
        top_p=0.5, text={"format": schema}, reasoning={"effort": "minimal"}, seed=3, priority=1,
    )  # fmt: skip
    assert ask.format == Format("json_schema", {"type": "object"}, name="n") and ask.tool_choice == "=look"
    assert not ask.parallel_tool_calls and ask.sampling.temperature == 0.5 and ask.sampling.seed == 3
    assert ask.reasoning == "low" and ask.tools[0].name == "look" and ask.priority == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"), ({"input": []}, "input"), ({"input": 3}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True, "store": False}, "background"),
        ({"truncation": "auto"}, "truncation"), ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "a"}]}, "input[0].call_id"),
        ({"include": ["file_search_call.results"]}, "include"), ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{**TOOL, "parameters": {"maximum": 1 << 70}}]}, "tools"),
        ({"input": [{"role": "user", "content": "a", "more": 1 << 70}]}, "input"),
        ({"temprature": 1}, "temprature"), ({"metadata": {"a": 1}}, "metadata"), ({"temperature": 3}, "temperature"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(respond: Responses, body: dict[str, Any], param: str) -> None:
    answer = await respond(**body)
    assert answer.status == 400 and json_of(answer)["error"]["param"] == param
    assert respond.script.asks == []


async def test_what_has_no_effect_is_said(respond: Responses) -> None:
    answer = await respond(
        store=False, truncation="disabled", include=["reasoning.encrypted_content"], reasoning={"summary": "auto"}
    )
    assert header_of(answer, "penstock-ignored") == "reasoning.summary, reasoning.encrypted_content"


async def test_errors(respond: Responses) -> None:
    respond.script.answers = [[Overloaded("full")]]
    assert (await respond()).status == 503
    respond.script.answers = [[BEGAN, Text(0, "a"), WorkerLost("the engine died")]]
    last = (await respond.events())[-1]
    assert last["type"] == "error" and last["message"] == last["error"]["message"] == "the engine died"
    respond.script.answers = [[BEGAN, Text(0, "a")]]
    assert (await respond.events())[-1]["type"] == "error"


def test_the_page_names_every_parameter() -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
    known = responses.KNOWN | set(responses.REFUSED) | responses.HARMLESS
    assert {name for name in known if f"`{name}`" not in page} == set()
    assert not responses.KNOWN & set(responses.REFUSED) and not responses.KNOWN & set(parameters.REFUSED)


async def stored(respond: Responses, id: str, rest: str = "", method: str = "GET") -> Any:
    return await respond.calls(method, f"/v1/responses/{id}{rest}")


async def test_what_is_kept_is_what_was_answered_and_its_events_say_the_same(respond: Responses) -> None:
    respond.script.answers = [MANY]
    document = json_of(await respond(tools=[TOOL]))
    assert json_of(await stored(respond, document["id"])) == document
    sent = (await pieces_of(await stored(respond, document["id"], "?stream=true"))).decode()
    events = [orjson.loads(part.split("data: ")[1]) for part in sent.split("\n\n")[:-1]]
    live = await respond.events(tools=[TOOL])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == document["output"]
    kinds = [event["type"] for event in live]
    kinds.remove("response.function_call_arguments.delta")  # two pieces there, one here
    assert [event["type"] for event in events] == kinds and events[-1]["response"] == document


async def test_a_response_goes_on_from_another(respond: Responses) -> None:
    respond.script.answers = [MANY, HELLO]
    first = json_of(await respond(tools=[TOOL], instructions="Be brief"))
    outputs = [{"type": "function_call_output", "call_id": id, "output": "gone"} for id in ("c1", "c2")]
    second = json_of(await respond(input=outputs, previous_response_id=first["id"], instructions="Be long"))
    assert second["previous_response_id"] == first["id"]
    assert list(respond.script.asks[-1].messages) == [
        Message("system", "Be long"), Message("user", "hi"),
        Message("assistant", "I look.", reasoning="hm",
                tool_calls=(ToolCall("c1", "look", '{"a":1}'), ToolCall("c2", "look", "{}"))),
        Message("tool", "gone", tool_call_id="c1"), Message("tool", "gone", tool_call_id="c2"),
    ]  # fmt: skip
    page = json_of(await stored(respond, second["id"], "/input_items?order=asc&limit=100"))
    assert [item["type"] for item in page["data"]] == [
        "message", "reasoning", "message", "function_call", "function_call", *["function_call_output"] * 2,
    ]  # fmt: skip
    assert len({item["id"] for item in page["data"]}) == 7 and page["data"][1:5] == first["output"]


async def test_a_call_that_was_cut_off_is_not_gone_on_from(respond: Responses) -> None:
    respond.script.answers = [[*MANY[:5], Finished(0, "length"), USAGE], HELLO]
    first = json_of(await respond(tools=[TOOL]))
    assert first["status"] == "incomplete" and first["output"][-1]["status"] == "incomplete"
    await respond(previous_response_id=first["id"])
    assert list(respond.script.asks[-1].messages) == [
        Message("user", "hi"), Message("assistant", "I look.", reasoning="hm"), Message("user", "hi"),
    ]  # fmt: skip


async def test_a_stream_that_is_cut_is_kept_as_what_it_is(respond: Responses) -> None:
    respond.script.answers = [[BEGAN, Text(0, "a"), WorkerLost("the engine died")]]
    id = (await respond.events())[0]["response"]["id"]
    failed = json_of(await stored(respond, id))
    assert failed["status"] == "failed" and failed["error"] == {"code": "server_error", "message": "the engine died"}
    assert failed["output"][0]["content"][0]["text"] == "a" and failed["output"][0]["status"] == "incomplete"
    answer = await respond(previous_response_id=id)
    assert answer.status == 400 and json_of(answer)["error"]["param"] == "previous_response_id"
    respond.script.answers = [HELLO]
    left = await respond(stream=True)
    first = await anext(left.pieces)
    await left.pieces.aclose()
    id = orjson.loads(first.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
    gone = json_of(await stored(respond, id))
    assert gone["status"] == "incomplete" and gone["output"][0]["content"][0]["text"] == "Hé" and gone["usage"] is None


async def test_who_reads_one_that_is_deleted_is_told_so(respond: Responses) -> None:
    respond.script.answers = [[Overloaded("no room", retry_after_s=60)]]  # it stays queued
    stream = await respond(background=True, stream=True)
    first = orjson.loads(data_of(await anext(stream.pieces)))
    assert (await stored(respond, first["response"]["id"], method="DELETE")).status == 200
    with pytest.raises(NotFound) as gone:
        await anext(stream.pieces)
    error = orjson.loads(data_of(stream.encode_error(gone.value)))["error"]
    assert "not found" in error["message"] and error["param"] == "id" and error["code"] is None


def test_one_that_was_lost_can_be_read_by_clients(respond: Responses) -> None:
    step = plug.wishes(respond.door).cut(b'{"id":"resp_1","created_at":1700000000}', "failed", "it is damaged", 0)
    found = openai.types.responses.Response.model_validate_json(step.document)
    assert found.id == "resp_1" and found.status == "failed" and found.error is not None and found.output_text == ""


def data_of(piece: bytes) -> bytes:
    """The data of a piece's first event."""
    return piece.split(b"\n", 2)[1].removeprefix(b"data: ")


async def test_the_oldest_go_and_all_are_kept_for_a_time_only(respond: Responses) -> None:
    bounds = ResponseBounds(caller_count=2)
    respond.door.keeper = ResponseKeeper(plug.wishes(respond.door), MemoryShelf(), lambda: respond.door.now[0], bounds)
    ids = [json_of(await respond())["id"] for _ in range(3)]
    assert [(await stored(respond, id)).status for id in ids] == [404, 200, 200]
    assert (await stored(respond, ids[1], method="DELETE")).status == 200
    assert (await stored(respond, ids[1])).status == 404
    respond.door.now[0] += KEEP_S + 1
    assert (await stored(respond, ids[2])).status == 404
    assert json_of(await respond(store=False))["store"] is False


async def test_what_is_too_large_to_be_kept_says_so(respond: Responses) -> None:
    bounds = ResponseBounds(one_bytes=100)
    respond.door.keeper = ResponseKeeper(plug.wishes(respond.door), MemoryShelf(), lambda: respond.door.now[0], bounds)
    document = json_of(await respond())
    assert document["store"] is False and (await stored(respond, document["id"])).status == 404
    events = await respond.events()
    assert events[-1]["type"] == "response.completed" and events[-1]["response"]["store"] is False
