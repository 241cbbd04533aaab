"""Every body of every language protocol with each of its values replaced by each of what nobody should send.

Whatever comes, it is an answer, or a refusal in the protocol's own shape that names what is wrong. Nothing is an error
of the server, nothing hangs, and the server answers afterwards.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from http_calls import Calls, json_of
from language_door import engine_of

from penstock.core.errors import PenstockError
from penstock.protocols import CallRoute, HttpStream, anthropic_http, openai_http, takeoff_http, v2_http

Json = Any
Path_ = tuple[str | int, ...]

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "f", "description": "d", "strict": True, "parameters": SCHEMA}
USER = [{"role": "user", "content": "say:ab"}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: list[tuple[str, dict[str, Json]]] = [
    ("/v1/chat/completions", {
        "model": "m", "max_tokens": 2, "temperature": 0.5, "top_p": 0.5, "stop": ["z"], "n": 1, "seed": 1,
        "messages": [
            {"role": "system", "content": "s", "name": "n"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "r"}, *USER,
        ],
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto", "parallel_tool_calls": False,
        "logprobs": True, "top_logprobs": 0, "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": 1},
        "user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "none", "stream": False,
    }),
    ("/v1/chat/completions", {
        "messages": USER, "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 2,
        "chat_template_kwargs": {"a": 1}, "add_generation_prompt": True, "min_tokens": 1, "top_k": 2, "min_p": 0.1,
        "repetition_penalty": 1.1, "stop_token_ids": [1],
    }),
    ("/v1/chat/completions", {"messages": USER, "tool_choice": {"type": "function", "function": {"name": "f"}},
                              "tools": [{"type": "function", "function": FUNCTION}]}),
    ("/v1/chat/completions", {"messages": USER, "functions": [FUNCTION], "function_call": {"name": "f"}}),
    ("/v1/chat/completions", {"messages": USER, "response_format": {
        "type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}}),
    ("/v1/chat/completions", {"messages": USER, "structured_outputs": {"regex": "a"}}),
    ("/v1/chat/completions", {"messages": USER, "guided_choice": ["a", "b"]}),
    ("/v1/chat/completions", {"messages": USER, "guided_json": "{}"}),
    ("/v1/completions", {
        "prompt": ["say:a", [5, 6]], "max_tokens": 2, "n": 1, "best_of": 1, "echo": False, "logprobs": 0, "stop": ["z"],
        "logit_bias": {"5": 1}, "response_format": {"type": "regex", "regex": "a"},
    }),
    ("/v1/completions", {"prompt": [[5, 6]], "max_tokens": 1, "stream": True, "stream_options": {
        "include_usage": True, "continuous_usage_stats": True}}),
    ("/v1/responses", {
        "instructions": "i", "max_output_tokens": 2,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}],
             "content": [{"type": "reasoning_text", "text": "t"}]},
            {"type": "message", "role": "user", "content": "say:b"},
        ],
        "tools": [{"type": "function", **FUNCTION}], "tool_choice": "auto", "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "none"}, "metadata": {"a": "b"}, "stream": False, "store": False,
    }),
    ("/v1/embeddings", {"input": ["a", [5]], "encoding_format": "base64", "dimensions": 4}),
    ("/v1/rerank", {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}),
    ("/v1/score", {"text_1": "a", "text_2": ["b", "c"]}),
    ("/v1/classify", {"input": ["b", "c"]}),
    ("/tokenize", {"prompt": "a", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": USER, "tools": [{"type": "function", "function": FUNCTION}]}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/v1/messages", {
        "model": "m", "max_tokens": 2, "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""},
                                              {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "x"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "is_error": True,
                                          "content": [{"type": "text", "text": "r"}]}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "stop_sequences": ["z"],
        "temperature": 0.5, "top_p": 0.5, "top_k": 3, "thinking": {"type": "disabled"}, "metadata": {"user_id": "a"},
    }),
    ("/v1/messages", {"messages": USER, "max_tokens": 2, "stream": True, "output_config": {
        "format": {"type": "json_schema", "schema": SCHEMA}}}),
    ("/v1/messages/count_tokens", {"messages": USER, "system": "a"}),
    ("/generate", {
        "text": ["say:a", "b"], "consumer_group": "primary", "max_new_tokens": 2, "min_new_tokens": 1,
        "sampling_temperature": 0.5, "sampling_topp": 0.5, "sampling_topk": 3, "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 0, "constrained_decoding_backend": "lmfe", "return_metadata": True,
        "prompt_max_tokens": 5, "use_chat_template": True,
    }),
    ("/generate", {"text": "a", "max_new_tokens": 2, "json_schema": SCHEMA}),
    ("/generate", {"text": "a", "max_new_tokens": 2, "regex_string": "a"}),
    ("/generate", {"text": "a", "max_new_tokens": 2, "lora_id": "l"}),
    ("/generate_stream", {"text": ["a", "b"], "max_new_tokens": 2, "return_metadata": True}),
    ("/embed", {"text": ["a", "b"], "consumer_group": "primary"}),
    ("/classify", {"text": [["a", "b"]], "consumer_group": "primary"}),
    ("/tokenize/m", {"text": "a", "use_chat_template": True}),
    ("/detokenize/m", {"tokens": [5, 6], "skip_special_tokens": True}),
    ("/chat_template/m", {"inputs": [USER], "add_generation_prompt": True}),
    ("/v2/models/m/generate", {"text_input": "say:a", "id": "i", "sampling_parameters": "{}", "parameters": {
        "max_tokens": 2, "temperature": 0.5, "top_k": 2, "stop": ["z"], "seed": 1}}),
    ("/v2/models/m/generate_stream", {"text_input": ["say:a"], "max_tokens": 2, "stream": True, "stop_words": ["z"]}),
]  # fmt: skip

_MARK = b'"@@here@@"'
# As JSON: what has the wrong type, no meaning, or no end.
BAD: dict[str, bytes] = {
    "null": b"null", "list": b"[]", "object": b"{}", "empty": b'""', "huge": b"1e308", "minus": b"-1", "true": b"true",
    "whole": b"9007199254740993", "line": b'"a\\r\\nb: c\\u2028"', "half": b'"\\ud800"', "deep": b"[" * 60 + b"]" * 60,
    "deeper": b"[" * 10_000 + b"]" * 10_000, "objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "long": b'"' + b"x" * (1 << 20) + b'"',
}  # fmt: skip
# Refused as a whole, before anything in it is looked at.
NOWHERE = ("half", "deep", "deeper", "objects")
# At a body's own members only: they cost time, or are alike everywhere.
ONCE = ("half", "deep", "deeper", "objects", "long")
# A place is not named by: which context is too small, which consumer group is not there, which other member is missing.
OTHERWISE = (
    "context holds",
    "no consumer group",
    "no model of",
    "Missing required parameter: 'prompt'",
    "Invalid 'function_call'",
)


def places(value: Json, path: Path_ = ()) -> Iterator[Path_]:
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def put(body: Json, path: Path_, raw: bytes) -> bytes:
    changed = copy.deepcopy(body)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = orjson.loads(_MARK)
    return orjson.dumps(changed).replace(_MARK, raw)


async def answered(calls: Calls, route: str, body: bytes) -> tuple[int, Json]:
    """Status and document; of a stream 200, or what it failed with before its first piece."""
    found, http = calls.request("POST", route, body)
    handle = found.route.handle if isinstance(found.route, CallRoute) else found.route.language
    assert handle is not None
    sent = b""
    async with asyncio.timeout(30):
        try:
            answer = await handle(http, calls.door)
            if isinstance(answer, HttpStream):
                async for piece in answer.pieces:
                    sent += piece
                return 200, {}
        except PenstockError as error:
            assert not sent, f"it failed after {sent[-200:]!r}: {error}"
            answer = found.protocol.encode_error(error, http)
    return answer.status, json_of(answer)


def told(route: str, document: Json) -> str:
    """What a refusal says, once it has its protocol's shape."""
    error = document["error"]
    if route.startswith("/v1/messages"):
        assert document["type"] == "error" and set(error) == {"type", "message"} and document["request_id"], document
    elif not route.startswith("/v2") and route.split("/")[1] in ("v1", "tokenize", "detokenize") and "/m" not in route:
        assert set(error) == {"message", "type", "param", "code"}, document
        return f"{error['message']} {error['param']}"
    else:
        assert isinstance(error, str), document
        return error
    return str(error["message"])


def named(path: Path_, text: str) -> bool:
    """Whether it says where: the member, or one around it."""
    return any(isinstance(key, str) and key in text for key in path)


async def test_a_wrong_value_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "echo.llmecho"
    path.touch()
    wrong = []
    plugs = [openai_http.plug, anthropic_http.plug, takeoff_http.plug, v2_http.plug]
    async with engine_of(path) as engine:
        calls = Calls(plugs, engine)  # type: ignore[arg-type]  # a real door
        for route, body in BODIES:
            status, document = await answered(calls, route, orjson.dumps(body))
            usual = () if status == 200 else (told(route, document),)  # this engine holds nothing to a grammar
            for place in places(body):
                for kind, raw in BAD.items():
                    if kind in ONCE and len(place) > 1:
                        continue
                    status, document = await answered(calls, route, put(body, place, raw))
                    if status == 200:
                        continue
                    text = told(route, document)
                    right = 400 <= status < 500 and len(orjson.dumps(document)) < 4096
                    if not right or not (kind in NOWHERE or named(place, text) or text in usual
                                         or any(words in text for words in OTHERWISE)):  # fmt: skip
                        wrong.append((route, place, kind, status, text[:200]))
            assert (await answered(calls, "/v1/completions", b'{"prompt":"say:a"}'))[0] == 200
    assert not wrong, "\n".join(map(str, wrong))
