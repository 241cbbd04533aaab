"""The generate extension for language models, as Triton's vLLM backend speaks it.

`{"text_input": …, "parameters": {"temperature": 0, "max_tokens": 20, "stop": ["\\n"]}}` gives `{"model_name",
"model_version", "text_output"}`; `generate_stream` gives one such event for each piece of text. Parameters may stand
beside `text_input` too, as TensorRT-LLM's clients write them. Unlike Triton's, the answer begins with the prompt only
when `exclude_input_in_output` is false.
Source: https://github.com/triton-inference-server/vllm_backend (README, src/model.py)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, cast

import orjson

from penstock.core import language_calls, trace
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.fields import Fields
from penstock.core.json_body import read_object
from penstock.core.language import Ask, Began, Event, Finished, LanguageModel, Sampling, Text, Usage
from penstock.protocols import HttpRequest, HttpResponse, HttpStream

_MOST_TOKENS: Final = 1 << 31
_DEFAULT_TOKENS: Final = 16  # vLLM's SamplingParams
_MOST_STOPS: Final = 64
_LONGEST_STOP: Final = 1024
_NAMES: Final = {"prompt": "text_input", "messages": "text_input"}
_TOLD: Final = ("finish_reason", "num_input_tokens", "num_output_tokens")  # with `return_` before it


@dataclass(slots=True)
class _Wish:
    """One request: what is asked, and how the answer looks."""

    ask: Ask
    head: dict[str, object]
    told: frozenset[str]
    before: str
    stream: bool | None


async def generate(http: HttpRequest, door: Door) -> HttpResponse:
    """The whole text. Raises: as `LanguageModel.ask`; InvalidInput."""
    model, wish = await _read(http, door)
    if wish.stream:
        raise InvalidInput("stream is true: ask generate_stream", parameter="stream", problem="invalid_value")
    return HttpResponse(200, await _whole(model, wish))


async def generate_stream(http: HttpRequest, door: Door) -> HttpStream:
    """An event for each piece of text; one for all of it when `stream` is false. Raises: as `generate`."""
    model, wish = await _read(http, door)
    if wish.stream is False:
        return HttpStream(_single(model, wish), _error_event)
    if wish.before:
        raise InvalidInput("exclude_input_in_output is false: a stream does not repeat the prompt",
                           parameter="exclude_input_in_output", problem="invalid_value")  # fmt: skip
    return HttpStream(_pieces(model, wish), _error_event)


async def _read(http: HttpRequest, door: Door) -> tuple[LanguageModel, _Wish]:
    body, http.body = http.body, b""
    fields = language_calls.read_fields(
        body, http.header(b"content-encoding"), http.limits.decompressed_bytes, http.limits.json_depth
    )
    text, identity = _text(fields), fields.text("id", 512) or ""
    values: dict[str, object] = {}
    if more := fields.text("sampling_parameters"):
        try:
            values |= read_object(more.encode())
        except InvalidInput as error:
            raise InvalidInput(
                f"sampling_parameters is no JSON object: {error.message}", parameter="sampling_parameters"
            ) from None
    beside = {name: fields.take(name) for name in fields.rest() if name != "parameters"}
    values |= beside | (fields.members("parameters") or {})
    language_calls.check_depth(values, http.limits.json_depth)
    given = Fields(values)
    model = await door.language(http.match["model"], http.match.get("version", ""))
    ask = Ask(
        prompt=text, max_tokens=given.integer("max_tokens", 1, _MOST_TOKENS) or _DEFAULT_TOKENS,
        sampling=_sampling(given), stop=_stops(given), stop_token_ids=given.token_ids("stop_token_ids", _MOST_STOPS),
        include_stop=given.flag("include_stop_str_in_output"),
        skip_special_tokens=given.flag("skip_special_tokens", True), adapter=given.text("lora_name", 512) or "",
        priority=given.integer("priority", 0, 1 << 15) or 0, id=identity, caller=http.caller, deadline=http.deadline,
        notes=http.notes, names=_NAMES,
    )  # fmt: skip
    if b"traceparent" in http.headers:
        ask.trace = trace.read(http.header(b"traceparent"), http.header(b"tracestate"), http.header(b"baggage"))
    stream = given.flag("stream") if given.take("stream") is not None else None
    head: dict[str, object] = {"model_name": model.card.name, "model_version": model.card.version}
    if identity:
        head["id"] = identity
    before = "" if given.flag("exclude_input_in_output", True) else text
    told = frozenset(name for name in _TOLD if given.flag(f"return_{name}"))
    if rest := [name for name in given.rest() if not (name in ("bad_words", "end_id", "pad_id") and not values[name])]:
        raise InvalidInput(
            f"a language model takes text_input and parameters of sampling here; unknown: {rest[0][:80]!r}",
            parameter=rest[0][:64], problem="unknown_parameter",
        )  # fmt: skip
    return model, _Wish(ask, head, told, before, stream)


def _text(fields: Fields) -> str:
    given = fields.take("text_input")
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if given is None:
        raise fields.missing("text_input")
    if not isinstance(given, str):
        raise fields.mistyped("text_input", given, "a string")
    return given


def _stops(given: Fields) -> tuple[str, ...]:
    found = given.texts("stop", _MOST_STOPS, _LONGEST_STOP) + given.texts("stop_words", _MOST_STOPS, _LONGEST_STOP)
    return tuple(stop for stop in found if stop)


def _sampling(given: Fields) -> Sampling:
    top_k = given.integer("top_k", -1, 1 << 31)
    return Sampling(
        given.number("temperature", 0, 100), given.number("top_p", 0, 1), 0 if top_k == -1 else top_k,
        given.number("min_p", 0, 1), given.number("presence_penalty", -2, 2) or 0.0,
        given.number("frequency_penalty", -2, 2) or 0.0, given.number("repetition_penalty", 0, 100),
        0, given.integer("seed", -(1 << 63), (1 << 63) - 1), {}, given.integer("min_tokens", 0, _MOST_TOKENS) or 0,
        given.flag("ignore_eos"),
    )  # fmt: skip


async def _whole(model: LanguageModel, wish: _Wish) -> bytes:
    texts, said = [wish.before], {**wish.head}
    async with aclosing(cast(AsyncGenerator[Event, None], model.ask(wish.ask))) as events:
        async for event in events:
            if isinstance(event, Text):
                texts.append(event.text)
            said |= _said(event, wish)
    return orjson.dumps(said | {"text_output": "".join(texts)})


async def _single(model: LanguageModel, wish: _Wish) -> AsyncIterator[bytes]:
    yield b"data: %b\n\n" % await _whole(model, wish)


async def _pieces(model: LanguageModel, wish: _Wish) -> AsyncIterator[bytes]:
    """What is told of the end comes with an event of its own, without text."""
    said: dict[str, object] = {}
    async with aclosing(cast(AsyncGenerator[Event, None], model.ask(wish.ask))) as events:
        async for event in events:
            if isinstance(event, Text) and event.text:
                yield b"data: %b\n\n" % orjson.dumps(wish.head | {"text_output": event.text})
            said |= _said(event, wish)
    if said:
        yield b"data: %b\n\n" % orjson.dumps(wish.head | {"text_output": ""} | said)


def _said(event: Event, wish: _Wish) -> dict[str, object]:
    if isinstance(event, Began):
        found: dict[str, object] = {"num_input_tokens": event.prompt_tokens}
    elif isinstance(event, Finished):
        found = {"finish_reason": event.reason}
    elif isinstance(event, Usage):
        found = {"num_output_tokens": event.completion_tokens}
    else:
        return {}
    return {name: value for name, value in found.items() if name in wish.told}


def _error_event(error: PenstockError) -> bytes:
    return b"data: %b\n\n" % orjson.dumps({"error": error.message, "type": type(error).__name__})
