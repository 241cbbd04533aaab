"""Events of text completions as OpenAI's older objects: one, or chunks of a stream.

Events come with the number of their prompt: a request may hold several, and choice `i` of prompt `p` is number
`p * n + i` of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from penstock.core.errors import Internal
from penstock.core.language import Began, Event, Finished, Reasoning, Text, TextToken, ToolCallPart, Usage
from penstock.protocols.openai_http.parameters import WHOLE, StreamOptions
from penstock.protocols.openai_http.shapes import (
    DONE,
    Head,
    OldLogprobs,
    prompt_logprobs,
    running_usage,
    usage_object,
)

Numbered = tuple[int, Event]  # a prompt's number, and an event of it

_dumps: Final = orjson.dumps


@dataclass(frozen=True, slots=True)
class Shape:
    """What a text completion looks like, besides what it says."""

    prompts: int = 1
    n: int = 1  # choices shown of each prompt
    best_of: int = 1  # choices generated of each prompt
    logprobs: bool = False
    prompt_logprobs: bool = False
    tokens_as_ids: bool = False
    echo: bool = False
    nothing: bool = False  # `max_tokens` was 0: only the echo is shown
    stream: StreamOptions = WHOLE


class Totals:
    """Usage of several asks."""

    def __init__(self, prompts: int) -> None:
        self._missing = prompts
        self._usage = Usage(0, 0)

    def add(self, usage: Usage) -> None:
        self._missing -= 1
        so_far = self._usage
        self._usage = replace(
            so_far,
            prompt_tokens=so_far.prompt_tokens + usage.prompt_tokens,
            completion_tokens=so_far.completion_tokens + usage.completion_tokens,
            cached_tokens=-1
            if min(so_far.cached_tokens, usage.cached_tokens) < 0
            else so_far.cached_tokens + usage.cached_tokens,
            reasoning_tokens=so_far.reasoning_tokens + usage.reasoning_tokens,
        )

    def of(self, shape: Shape) -> dict[str, object]:
        """The whole. Raises: Internal when an ask ended before its time."""
        if self._missing:
            raise Internal("the answer ended before its end")
        return usage_object(replace(self._usage, completion_tokens=0) if shape.nothing else self._usage)


def visible(event: Event) -> str | None:
    """The text of an event; None when it has none. Reasoning and calls are text here: nothing parses them apart."""
    match event:
        case Text() | Reasoning():
            return event.text
        case ToolCallPart():
            return event.arguments
    return None


class TextStream:
    """Chunks. `encode` gives the bytes of one event, `end` what comes after the last one."""

    def __init__(self, head: Head, shape: Shape) -> None:
        self._shape = shape
        usage = b',"usage":null' if shape.stream.usage and not shape.stream.running_usage else b""
        self._head = b"data: {" + head.rendered("text_completion")
        self._tail = usage + b"}\n\n"
        count = shape.prompts * shape.n
        self._before = [b'%b,"choices":[{"index":%d,"text":' % (self._head, choice) for choice in range(count)]
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._plain = not (shape.logprobs or shape.nothing or shape.stream.running_usage)
        self._logprobs = [OldLogprobs(shape.tokens_as_ids) for _ in range(count)] if shape.logprobs else []
        self._open = set(range(count))
        self._totals = Totals(shape.prompts)
        self._prompt_tokens = self._generated = 0

    def encode(self, numbered: Numbered) -> bytes:
        """The chunk that an event makes; nothing for `Began` and `Usage`."""
        prompt, event = numbered
        if type(event) is Text and self._plain and not event.prompt:
            choice = prompt * self._shape.n + event.choice
            return b"".join((self._before[choice], _dumps(event.text), self._after))
        return self._encode(prompt, event)

    def _encode(self, prompt: int, event: Event) -> bytes:
        if isinstance(event, Began):
            self._prompt_tokens += event.prompt_tokens
            return b""
        if isinstance(event, Usage):
            self._totals.add(event)
            return b""
        choice = prompt * self._shape.n + event.choice
        if isinstance(event, Finished):
            self._open.discard(choice)
            return self._chunk(choice, "", b"null", _dumps(event.reason), event.stop)
        text = visible(event) or ""
        tokens: Sequence[TextToken] = ()
        if isinstance(event, Text):
            if (event.prompt and not self._shape.echo) or (self._shape.nothing and not event.prompt):
                return b""
            tokens = event.tokens
        self._generated += event.count
        logprobs = b"null"
        if self._shape.logprobs:
            lists = self._logprobs[choice]
            lists.add(text, tokens, isinstance(event, Text) and event.prompt)
            logprobs = _dumps(lists.take()) if tokens else logprobs
        return self._chunk(choice, text, logprobs)

    def _chunk(
        self, choice: int, text: str, logprobs: bytes, reason: bytes = b"null", stop: str | int | None = None
    ) -> bytes:
        usage = b""
        if self._shape.stream.running_usage:
            usage = b',"usage":' + running_usage(self._prompt_tokens, self._generated)
        return b'%b%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b}]%b%b' % (
            self._before[choice], _dumps(text), logprobs, reason, _dumps(stop), usage, self._tail,
        )  # fmt: skip

    def end(self) -> bytes:
        """The usage, if it was asked for, and the end. Raises: Internal when the events ended before their time."""
        usage = self._totals.of(self._shape)
        if self._open:
            raise Internal("the answer ended before its end")
        if not self._shape.stream.usage:
            return DONE
        return b'%b,"choices":[],"usage":%b}\n\n%b' % (self._head, _dumps(usage), DONE)


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    logprobs: OldLogprobs = field(default_factory=OldLogprobs)
    prompt: list[TextToken] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # log-probabilities of what was generated
    finished: Finished | None = None

    def likelihood(self) -> float:
        """Log-probability per token: what `best_of` goes by."""
        return sum(self.weights) / len(self.weights) if self.weights else -math.inf


class TextAnswer:
    """The one object of an answer that is not streamed."""

    def __init__(self, head: Head, shape: Shape) -> None:
        self._head = head
        self._shape = shape
        self._choices = [
            [_Choice(logprobs=OldLogprobs(shape.tokens_as_ids)) for _ in range(shape.best_of)]
            for _ in range(shape.prompts)
        ]
        self._totals = Totals(shape.prompts)

    def add(self, numbered: Numbered) -> None:
        """Takes note of an event."""
        prompt, event = numbered
        if isinstance(event, Usage):
            self._totals.add(event)
            return
        if isinstance(event, Began):
            return
        choice = self._choices[prompt][event.choice]
        if isinstance(event, Finished):
            choice.finished = event
            return
        if isinstance(event, Text) and event.prompt:
            choice.prompt += event.tokens
            if not self._shape.echo:
                return
        elif self._shape.nothing:
            return
        text = visible(event) or ""
        choice.texts.append(text)
        if isinstance(event, Text) and event.tokens:
            choice.logprobs.add(text, event.tokens, event.prompt)
            if not event.prompt:
                choice.weights += [token.logprob for token in event.tokens]

    def body(self) -> bytes:
        """The object. Raises: Internal when the events ended before their time."""
        usage = self._totals.of(self._shape)
        shown: list[dict[str, object]] = []
        for choices in self._choices:
            if len(choices) > self._shape.n:
                choices = sorted(choices, key=_Choice.likelihood, reverse=True)[: self._shape.n]
            shown += [self._choice(len(shown) + at, choice) for at, choice in enumerate(choices)]
        return b"{%b,%b" % (
            self._head.rendered("text_completion"),
            _dumps({"choices": shown, "usage": usage})[1:],
        )

    def _choice(self, at: int, choice: _Choice) -> dict[str, object]:
        if choice.finished is None:
            raise Internal("the answer ended before its end")
        shown: dict[str, object] = {
            "index": at, "text": "".join(choice.texts),
            "logprobs": choice.logprobs.take() if self._shape.logprobs else None,
            "finish_reason": choice.finished.reason, "stop_reason": choice.finished.stop,
        }  # fmt: skip
        if self._shape.prompt_logprobs:
            shown["prompt_logprobs"] = prompt_logprobs(choice.prompt)
        return shown
