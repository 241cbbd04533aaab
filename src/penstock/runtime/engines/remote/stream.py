"""What an upstream streams, as Events: chunks of chat completions and of completions.

A stream is whole when every choice has said how it finished; one that ends before is an error, whatever its framing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from penstock.core.errors import ServableError
from penstock.core.language import (
    Began,
    Event,
    Finished,
    FinishReason,
    Reasoning,
    Text,
    TextToken,
    ToolCallPart,
    Usage,
)

LEAST_LOGPROB = -9999.0  # as OpenAI writes minus infinity
_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter",
}  # fmt: skip


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Words(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float | None = None
    bytes: list[int] | None = None


class _Token(_Top):
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None
    tokens: list[str] | None = None  # these three: of completions
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Words | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Thought(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Thought | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    model: str | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Reader:
    """Reads one stream of `count` choices."""

    def __init__(self, count: int) -> None:
        self._open = set(range(count))
        self._began = False
        self._usage: _Usage | None = None
        self._pieces = 0
        self.done = False  # [DONE] was met

    def read(self, data: bytes) -> Iterator[Event]:
        """The events of one `data:` line. Raises: ServableError for an error or for what is no chunk."""
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            raise ServableError(f"the upstream sent what is no chunk of an answer: {error}") from None
        if chunk.error:
            raise ServableError(f"the upstream failed in the middle of its answer: {error_text(chunk.error)}")
        if not self._began:
            self._began = True
            yield Began(0, chunk.model or "", "")
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            yield from self._choice(choice)

    def _choice(self, choice: _Choice) -> Iterator[Event]:
        if choice.index not in self._open:
            if choice.finish_reason or choice.text or (choice.delta is not None and choice.delta.content):
                raise ServableError(
                    f"the upstream sent more of choice {choice.index}, which has ended or was not asked for"
                )
            return
        words = choice.delta or _Words()
        tokens = _tokens(choice.logprobs)
        count = max(len(tokens), 1)
        if thought := words.reasoning_content or words.reasoning:
            self._pieces += 1
            yield Reasoning(choice.index, thought)
        text = (choice.text or "") + (words.content or "") + (words.refusal or "")
        if text or tokens:
            self._pieces += count
            yield Text(choice.index, text, tokens, count=count)
        for call in words.tool_calls or ():
            self._pieces += 1
            function = call.function or _Function()
            yield ToolCallPart(choice.index, call.index, call.id or "", function.name or "", function.arguments or "")
        if choice.finish_reason:
            self._open.discard(choice.index)
            stop = choice.stop_reason if choice.finish_reason == "stop" else None
            yield Finished(choice.index, _REASONS.get(choice.finish_reason, "stop"), stop)

    def end(self) -> Usage:
        """The last event. Raises: ServableError when a choice has not finished."""
        if self._open or not self._began:
            raise ServableError("the upstream left off in the middle of its answer")
        told = self._usage
        if told is None:  # it knows no stream_options: a piece is about a token
            return Usage(0, self._pieces, -1)
        cached = told.prompt_tokens_details.cached_tokens if told.prompt_tokens_details else None
        thought = told.completion_tokens_details.reasoning_tokens if told.completion_tokens_details else 0
        return Usage(told.prompt_tokens, told.completion_tokens, -1 if cached is None else cached, thought or 0)


def _tokens(logprobs: _Logprobs | None) -> tuple[TextToken, ...]:
    if logprobs is None:
        return ()
    if logprobs.content is not None:
        return tuple(
            TextToken(-1, token.token, _raw(token), _number(token.logprob),
                      tuple((-1, top.token, _raw(top), _number(top.logprob)) for top in token.top_logprobs))
            for token in logprobs.content
        )  # fmt: skip
    words, values = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [None] * len(words)
    return tuple(
        TextToken(-1, word, word.encode(), _number(value),
                  tuple((-1, text, text.encode(), number) for text, number in (top or {}).items()))
        for word, value, top in zip(words, values, tops, strict=False)
    )  # fmt: skip


def _raw(token: _Top) -> bytes:
    try:
        return token.token.encode() if token.bytes is None else bytes(token.bytes)
    except ValueError:
        raise ServableError("the upstream sent a token whose bytes are none") from None


def _number(value: float | None) -> float:
    return LEAST_LOGPROB if value is None else value


def error_text(found: object) -> str:
    """What an error of OpenAI's shape, or of another, says."""
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail") or found.get("error") or found
    return str(found)[:500]
