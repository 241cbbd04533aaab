from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from http_calls import Calls, header_of, json_of
from scripted_language import CARD, INFO, Script, ScriptDoor, pieces_of

from penstock.core.errors import Overloaded, PenstockError, QuotaExceeded, TooLarge, Unsupported, WorkerLost
from penstock.core.language import Began, Event, Finished, Format, Reasoning, Text, TextToken, ToolCallPart, Usage
from penstock.protocols.openai_http import plug

BEGAN = Began(5, "m", "3")
USAGE = Usage(5, 2, cached_tokens=3, reasoning_tokens=1)
HELLO: list[Event | PenstockError] = [BEGAN, Text(0, "Hé"), Text(0, '"llo'), Finished(0, "stop"), USAGE]
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


class Chat:
    def __init__(self) -> None:
        self.script = Script([HELLO])
        self.calls = Calls([plug], ScriptDoor(self.script))

    async def __call__(self, **body: Any) -> Any:
        body = {"model": "m", "messages": USER, **body}
        return await self.calls("POST", "/v1/chat/completions", orjson.dumps(body))

    async def asked(self, **body: Any) -> Any:
        answer = await self(**body)
        assert getattr(answer, "status", 200) == 200, answer
        return self.script.asks[-1]

    async def refused(self, **body: Any) -> dict[str, Any]:
        answer = await self(**body)
        assert answer.status == 400, answer
        error = json_of(answer)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
        return dict(error)

    async def chunks(self, **body: Any) -> list[Any]:
        """The objects of a stream; its last line is checked to be the end."""
        sent = await pieces_of(await self(stream=True, **body))
        *lines, last = sent.decode().removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]"
        return [orjson.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture
def chat() -> Chat:
    return Chat()


# Answers


async def test_an_answer_in_one_piece(chat: Chat) -> None:
    answer = await chat()
    document = json_of(answer)
    assert document["object"] == "chat.completion" and document["id"].startswith("chatcmpl-")
    assert document["model"] == "m" and document["system_fingerprint"].startswith("fp_")
    (choice,) = document["choices"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == 'Hé"llo'
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None and choice["message"]["refusal"] is None
    assert document["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 1},
    }  # fmt: skip
    assert header_of(answer, "x-request-id")
    again = json_of(await chat())
    assert again["system_fingerprint"] == document["system_fingerprint"] and again["id"] != document["id"]


async def test_a_stream_begins_with_roles_and_ends_with_reasons(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, Text(1, "b"), Text(0, "a"), Finished(1, "length"), Finished(0, "stop"), USAGE]]
    chunks = await chat.chunks(n=2)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    told = [(c["choices"][0]["index"], c["choices"][0]["delta"], c["choices"][0]["finish_reason"]) for c in chunks]
    role = {"role": "assistant", "content": "", "refusal": None}
    assert told == [
        (0, role, None), (1, role, None), (1, {"content": "b"}, None), (0, {"content": "a"}, None),
        (1, {}, "length"), (0, {}, "stop"),
    ]  # fmt: skip


async def test_usage_is_one_more_chunk_without_choices(chat: Chat) -> None:
    *chunks, last = await chat.chunks(stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 7
    assert last["id"] == chunks[0]["id"]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


async def test_usage_may_run_along(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, Text(0, "a", count=2), Text(0, "b", count=1), Finished(0, "stop"), USAGE]]
    chunks = await chat.chunks(stream_options={"include_usage": True, "continuous_usage_stats": True})
    told = [c["usage"]["completion_tokens"] for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")]
    assert told == [2, 3]
    assert chunks[0]["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}, "with the role too"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_cached_tokens_that_nobody_knows_are_not_told(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, Text(0, "a"), Finished(0, "stop"), Usage(5, 2, cached_tokens=-1)]]
    assert "prompt_tokens_details" not in json_of(await chat())["usage"]
    assert "prompt_tokens_details" not in (await chat.chunks(stream_options={"include_usage": True}))[-1]["usage"]


async def test_stream_options_need_a_stream(chat: Chat) -> None:
    assert (await chat.refused(stream_options={"include_usage": True}))["param"] == "stream_options"


async def test_every_text_survives_both_forms(chat: Chat) -> None:
    text = 'a"b\\c\n\u2028\U0001f600\x00end'
    chat.script.answers = [[BEGAN, *(Text(0, char) for char in text), Finished(0, "stop"), USAGE]]
    assert json_of(await chat())["choices"][0]["message"]["content"] == text
    chunks = await chat.chunks()
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


CALLS: list[Event | PenstockError] = [
    BEGAN,
    ToolCallPart(0, 0, "call_1", "look"), ToolCallPart(0, 0, arguments='{"a":'), ToolCallPart(0, 0, arguments="1}"),
    ToolCallPart(0, 1, "call_2", "look", "{}"), Finished(0, "tool_calls"), USAGE,
]  # fmt: skip


async def test_tool_calls_in_one_piece(chat: Chat) -> None:
    chat.script.answers = [CALLS]
    (choice,) = json_of(await chat(tools=[TOOL]))["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ]


async def test_tool_calls_streamed_name_themselves_once(chat: Chat) -> None:
    chat.script.answers = [CALLS]
    deltas = [chunk["choices"][0]["delta"] for chunk in await chat.chunks(tools=[TOOL])]
    parts = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert parts == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ]


async def test_the_form_before_tools(chat: Chat) -> None:
    chat.script.answers = [[*CALLS[:4], Finished(0, "tool_calls"), USAGE]]
    body = {"functions": [TOOL["function"]], "function_call": {"name": "look"}}
    (choice,) = json_of(await chat(**body))["choices"]
    assert chat.script.asks[-1].tool_choice == "=look"
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "look", "arguments": '{"a":1}'}
    assert "tool_calls" not in choice["message"]
    assert (await chat.chunks(**body))[-1]["choices"][0]["finish_reason"] == "function_call"


async def test_reasoning_has_fields_of_its_own(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, Reasoning(0, "hm"), Text(0, "yes"), Finished(0, "stop"), USAGE]]
    message = json_of(await chat())["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == ("hm", "hm", "yes")
    deltas = [chunk["choices"][0]["delta"] for chunk in await chat.chunks()]
    assert {"reasoning_content": "hm", "reasoning": "hm"} in deltas
    assert "reasoning" not in json_of(await chat(include_reasoning=False))["choices"][0]["message"]


async def test_logprobs_with_bytes_also_of_half_characters(chat: Chat) -> None:
    token = TextToken(7, "�", b"\xc3", -0.5, ((7, "�", b"\xc3", -0.5), (8, "x", b"x", float("-inf"))))
    chat.script.answers = [[BEGAN, Text(0, "", (token,)), Finished(0, "stop"), USAGE]]
    expected = [
        {
            "token": "�", "bytes": [0xC3], "logprob": -0.5,
            "top_logprobs": [
                {"token": "�", "bytes": [0xC3], "logprob": -0.5},
                {"token": "x", "bytes": [120], "logprob": -9999.0},
            ],
        }
    ]  # fmt: skip
    body = {"logprobs": True, "top_logprobs": 2}
    assert json_of(await chat(**body))["choices"][0]["logprobs"] == {"content": expected, "refusal": None}
    assert chat.script.asks[-1].logprobs == 2
    chunks = [chunk["choices"][0] for chunk in await chat.chunks(**body)]
    assert [c["logprobs"]["content"] for c in chunks if c["logprobs"]] == [expected]
    ids = json_of(await chat(**body, return_tokens_as_token_ids=True))["choices"][0]["logprobs"]["content"]
    assert ids[0]["token"] == "token_id:7"


async def test_prompt_logprobs(chat: Chat) -> None:
    tokens = (TextToken(1, "<s>", b"", float("nan")), TextToken(7, "a", b"a", -2.0, ((9, "b", b"b", -0.1),)))
    chat.script.answers = [[BEGAN, Text(0, "", tokens, prompt=True), Text(0, "x"), Finished(0, "stop"), USAGE]]
    document = json_of(await chat(prompt_logprobs=1))
    assert document["prompt_logprobs"] == [
        None,
        {
            "9": {"logprob": -0.1, "rank": 1, "decoded_token": "b"},
            "7": {"logprob": -2.0, "rank": None, "decoded_token": "a"},
        },
    ]
    assert document["choices"][0]["message"]["content"] == "x"


# Errors


async def test_a_stream_that_fails_ends_with_an_error_and_no_done(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, Text(0, "a"), WorkerLost("the engine died")]]
    sent = await pieces_of(await chat(stream=True))
    last = sent.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    error = orjson.loads(last.removeprefix(b"data: "))["error"]
    assert error == {"message": "the engine died", "type": "server_error", "param": None, "code": "engine_lost"}
    assert b"[DONE]" not in sent and chat.script.closed == 1


async def test_a_stream_without_its_end_is_an_error(chat: Chat) -> None:
    for events in ([BEGAN, Text(0, "a")], [BEGAN, Text(0, "a"), USAGE], [BEGAN, Text(0, "a"), Finished(0, "stop")]):
        chat.script.answers = [events]
        sent = await pieces_of(await chat(stream=True))
        assert b'"error"' in sent and b"[DONE]" not in sent
        assert (await chat()).status == 500


async def test_what_comes_before_the_first_token_is_not_sent_alone(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, WorkerLost("the engine died")]]
    stream = await chat(stream=True)
    with pytest.raises(WorkerLost):
        await anext(stream.pieces)


async def test_clients_try_again_only_what_has_not_begun(chat: Chat) -> None:
    chat.script.answers = [[Overloaded("full", retry_after_s=0.25)]]
    answer = await chat()
    assert answer.status == 503 and header_of(answer, "x-should-retry") is None
    assert (header_of(answer, "retry-after"), header_of(answer, "retry-after-ms")) == ("1", "250")
    chat.script.answers = [[QuotaExceeded("too much", retry_after_s=2)]]
    answer = await chat()
    assert answer.status == 429 and header_of(answer, "retry-after-ms") == "2000"
    assert json_of(answer)["error"]["code"] == "rate_limit_exceeded"
    chat.script.answers = [[BEGAN, Text(0, "a"), WorkerLost("died", begun=False)]]
    answer = await chat()
    assert answer.status == 503 and header_of(answer, "x-should-retry") == "false"


async def test_a_prompt_that_is_too_long(chat: Chat) -> None:
    chat.script.answers = [[TooLarge("the prompt has 99 tokens, the context 64")]]
    assert (await chat.refused())["code"] == "context_length_exceeded"
    with pytest.raises(PenstockError) as refused:
        await anext((await chat(stream=True)).pieces)
    answer = plug.encode_error(refused.value, chat.calls.request("POST", "/v1/chat/completions")[1])
    assert answer.status == 400 and json_of(answer)["error"]["param"] == "messages"


async def test_a_limit_beyond_the_context_is_named_itself(chat: Chat) -> None:
    chat.script.answers = [[TooLarge("max_tokens is 99", parameter="max_tokens", problem="context_length_exceeded")]]
    error = await chat.refused(max_tokens=99)
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")


async def test_what_a_model_cannot_do_is_400(chat: Chat) -> None:
    chat.script.answers = [[Unsupported("no chat template")]]
    assert (await chat.refused())["code"] == "unsupported"


async def test_a_model_that_does_not_generate_is_the_wrong_model(chat: Chat) -> None:
    chat.script.card = replace(CARD, info=replace(INFO, generates=False))
    chat.script.answers = [[Unsupported("model 'm' does not generate text; ask it for embeddings")]]
    error = await chat.refused()
    assert (error["param"], error["code"]) == ("model", "unsupported_model")


async def test_unknown_models_are_404(chat: Chat) -> None:
    answer = await chat(model="nobody")
    error = json_of(answer)["error"]
    assert answer.status == 404 and (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(("name", "adapter"), [("m", ""), ("m:3", ""), ("m:stable", ""), ("polite", "polite")])
async def test_a_model_by_version_label_or_adapter(chat: Chat, name: str, adapter: str) -> None:
    assert (await chat.asked(model=name)).adapter == adapter
    assert json_of(await chat(model=name))["model"] == name


async def test_a_version_that_is_not_there_is_404(chat: Chat) -> None:
    assert (await chat(model="m:4")).status == 404


# Parameters


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"temperature": 9}, "temperature", "decimal_above_max_value"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"presence_penalty": 2.1}, "presence_penalty", "decimal_above_max_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"seed": 1 << 63}, "seed", "integer_above_max_value"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         "messages[0].content[0].image_url", "unsupported_value"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [TOOL, TOOL]}, "tools", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice",
         "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "invalid_value"),
        ({"guided_json": "{"}, "guided_json", "invalid_value"),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
        ({"bad_words": ["no"]}, "bad_words", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(chat: Chat, body: dict[str, Any], param: str, code: str) -> None:
    error = await chat.refused(**body)
    assert (error["param"], error["code"]) == (param, code)
    assert chat.script.asks == []


async def test_harmless_members_are_accepted_and_strangers_are_told(chat: Chat) -> None:
    answer = await chat(user="me", metadata={"a": "b"}, store=True, use_beam_search=False, modalities=["text"])
    assert answer.status == 200 and header_of(answer, "penstock-ignored") is None
    answer = await chat(my_own_note=1, another=None)
    assert answer.status == 200 and header_of(answer, "penstock-ignored") == "my_own_note"


async def test_everything_arrives(chat: Chat) -> None:
    chat.script.answers = [[BEGAN, Finished(0, "stop"), Finished(1, "stop"), USAGE]]
    ask = await chat.asked(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.2, no_repeat_ngram_size=3, seed=-4, logit_bias={"5": -100}, min_tokens=2, ignore_eos=True,
        n=2, stop="x", stop_token_ids=[7], include_stop_str_in_output=True, skip_special_tokens=False, priority=2,
        chat_template="t", chat_template_kwargs={"a": 1}, documents=[{"text": "d"}], add_generation_prompt=False,
        parallel_tool_calls=False, tools=[TOOL], tool_choice="required", reasoning_effort="minimal",
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "eve"},
            {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
    )  # fmt: skip
    sampling = ask.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.2)
    assert (sampling.no_repeat_ngram, sampling.seed, sampling.logit_bias) == (3, -4, {5: -100.0})
    assert (sampling.min_tokens, sampling.ignore_eos, ask.max_tokens, ask.n) == (2, True, 9, 2)
    assert (ask.stop, ask.stop_token_ids, ask.include_stop, ask.skip_special_tokens) == (("x",), (7,), True, False)
    assert (ask.priority, ask.template, ask.add_generation_prompt) == (2, "t", False)
    assert ask.template_arguments == {"a": 1, "documents": [{"text": "d"}]}
    assert (ask.parallel_tool_calls, ask.tool_choice, ask.reasoning) == (False, "required", "low")
    developer, user, assistant, tool = ask.messages
    assert developer.role == "developer" and (user.content, user.name) == ("a\nb", "eve")
    assert assistant.content is None and assistant.reasoning == "r"
    assert assistant.tool_calls[0].name == "look" and (tool.tool_call_id, tool.content) == ("c", "42")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": {"type": "text"}}, Format()),
        ({"response_format": {"type": "json_object"}}, Format("json_object")),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"a": 1}}}},
         Format("json_schema", {"a": 1}, name="n")),
        ({"response_format": {"type": "regex", "regex": "a+"}}, Format("regex", text="a+")),
        ({"guided_json": '{"a": 1}'}, Format("json_schema", {"a": 1})),
        ({"guided_regex": "a"}, Format("regex", text="a")),
        ({"guided_choice": ["a", "b"]}, Format("choice", choices=("a", "b"))),
        ({"guided_grammar": "root ::= \"a\""}, Format("ebnf", text='root ::= "a"')),
        ({"guided_grammar": "start: \"a\""}, Format("lark", text='start: "a"')),
        ({"structured_outputs": {"json": {"a": 1}}}, Format("json_schema", {"a": 1})),
        ({"structured_outputs": {"choice": ["a"]}}, Format("choice", choices=("a",))),
        ({"structured_outputs": {"json_object": True}}, Format("json_object")),
    ],
)  # fmt: skip
async def test_formats(chat: Chat, body: dict[str, Any], expected: Format) -> None:
    assert (await chat.asked(**body)).format == expected


async def test_allowed_tools_leave_the_others_out(chat: Chat) -> None:
    other = {"type": "function", "function": {"name": "leap"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "leap"}}]}
    ask = await chat.asked(tools=[TOOL, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [tool.name for tool in ask.tools] == ["leap"] and ask.tool_choice == "required"


async def test_the_newer_limit_wins_and_errors_call_it_so(chat: Chat) -> None:
    ask = await chat.asked(max_tokens=3, max_completion_tokens=4)
    assert ask.max_tokens == 4 and ask.names["max_tokens"] == "max_completion_tokens"


@pytest.mark.parametrize("name", ["response_format", "guided_regex", "structured_outputs"])
async def test_errors_call_a_format_as_it_was_asked_for(chat: Chat, name: str) -> None:
    values: dict[str, Any] = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    assert (await chat.asked(**{name: values.get(name, "a")})).names["format"] == name


@pytest.mark.parametrize("name", ["chat_template_kwargs", "metadata"])
async def test_a_body_is_nested_no_deeper_than_the_server_takes(chat: Chat, name: str) -> None:
    inner: Any = {}
    for _ in range(62):
        inner = {"a": inner}
    assert (await chat(**{name: inner})).status == 200
    assert "nested" in (await chat.refused(**{name: {"a": inner}}))["message"]


async def test_broken_bodies(chat: Chat) -> None:
    for body in (b"{", b"[]", b"", b'"x"', b'{"model":1}', b"\xff", b'{"messages":' + b"[" * 10_000):
        assert (await chat.calls("POST", "/v1/chat/completions", body)).status == 400
