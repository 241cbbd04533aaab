"""Events of a chat completion as OpenAI's objects: one, or chunks of a stream.

A chunk is the hot path: all of it but the text is made once for each choice, and what is left is one `orjson.dumps` and
one join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from penstock.core.errors import Internal
from penstock.core.language import Began, Event, Finished, Reasoning, Text, TextToken, ToolCallPart, Usage
from penstock.protocols.openai_http.parameters import WHOLE, StreamOptions
from penstock.protocols.openai_http.shapes import (
    DONE,
    Head,
    chat_logprobs,
    prompt_logprobs,
    running_usage,
    usage_object,
)

_dumps: Final = orjson.dumps


@dataclass(frozen=True, slots=True)
class Shape:
    """What a chat completion looks like, besides what it says."""

    choices: int = 1
    logprobs: bool = False
    tokens_as_ids: bool = False
    functions: bool = False  # calls as `function_call`, the form before tools
    reasoning: bool = True  # it is shown
    stream: StreamOptions = WHOLE


def finish_reason(event: Finished, shape: Shape) -> str:
    return "function_call" if shape.functions and event.reason == "tool_calls" else event.reason


class ChatStream:
    """Chunks. `encode` gives the bytes of one event, `end` what comes after the last one."""

    def __init__(self, head: Head, shape: Shape) -> None:
        self._shape = shape
        usage = b',"usage":null' if shape.stream.usage and not shape.stream.running_usage else b""
        self._head = b"data: {" + head.rendered("chat.completion.chunk")
        self._tail = usage + b"}\n\n"
        self._before = [b'%b,"choices":[{"index":%d,"delta":' % (self._head, choice) for choice in range(shape.choices)]
        self._text = [before + b'{"content":' for before in self._before]
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._after_text = b"}" + self._after
        self._plain = not (shape.logprobs or shape.stream.running_usage)
        self._role = True  # yet to be sent
        self._open = set(range(shape.choices))
        self._usage: Usage | None = None
        self._prompt_tokens = 0
        self._generated = 0

    def encode(self, event: Event) -> bytes:
        """The chunks that an event makes; nothing for `Began` and `Usage`."""
        if type(event) is Text and self._plain and not event.prompt:
            piece = b"".join((self._text[event.choice], _dumps(event.text), self._after_text))
        else:
            piece = self._encode(event)
        if self._role and piece:
            self._role = False
            return self._roles() + piece
        return piece

    def _encode(self, event: Event) -> bytes:
        match event:
            case Text(prompt=True):
                return b""
            case Text():
                self._generated += event.count
                return self._chunk(event.choice, b'{"content":%b}' % _dumps(event.text), event.tokens)
            case Reasoning():
                self._generated += event.count
                if not self._shape.reasoning:
                    return b""
                text = _dumps(event.text)
                return self._chunk(event.choice, b'{"reasoning_content":%b,"reasoning":%b}' % (text, text))
            case ToolCallPart():
                self._generated += event.count
                return self._chunk(event.choice, _dumps(_call_delta(event, self._shape.functions)))
            case Finished():
                self._open.discard(event.choice)
                return b'%b{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}]%b%b' % (
                    self._before[event.choice], _dumps(finish_reason(event, self._shape)), _dumps(event.stop),
                    self._running(), self._tail,
                )  # fmt: skip
            case Began():
                self._prompt_tokens = event.prompt_tokens
            case Usage():
                self._usage = event
        return b""

    def _chunk(self, choice: int, delta: bytes, tokens: Sequence[TextToken] = ()) -> bytes:
        logprobs: object = None
        if self._shape.logprobs and tokens:
            logprobs = {"content": chat_logprobs(tokens, self._shape.tokens_as_ids), "refusal": None}
        return b'%b%b,"logprobs":%b,"finish_reason":null}]%b%b' % (
            self._before[choice], delta, _dumps(logprobs), self._running(), self._tail,
        )  # fmt: skip

    def _running(self) -> bytes:
        if not self._shape.stream.running_usage:
            return b""
        return b',"usage":' + running_usage(self._prompt_tokens, self._generated)

    def _roles(self) -> bytes:
        after = self._after
        if self._shape.stream.running_usage:
            usage = b',"usage":' + running_usage(self._prompt_tokens, 0)
            after = b',"logprobs":null,"finish_reason":null}]%b%b' % (usage, self._tail)
        return b"".join(
            b'%b{"role":"assistant","content":"","refusal":null}%b' % (before, after) for before in self._before
        )

    def end(self) -> bytes:
        """The usage, if it was asked for, and the end. Raises: Internal when the events ended before their time."""
        if self._open or self._usage is None:
            raise Internal("the answer ended before its end")
        if not self._shape.stream.usage:
            return DONE
        return b'%b,"choices":[],"usage":%b}\n\n%b' % (self._head, _dumps(usage_object(self._usage)), DONE)


def _call_delta(part: ToolCallPart, functions: bool) -> dict[str, object]:
    function: dict[str, object] = {"arguments": part.arguments}
    if part.name:
        function = {"name": part.name, "arguments": part.arguments}
    if functions:
        return {"function_call": function}
    call: dict[str, object] = {"index": part.index, "function": function}
    if part.id:
        call = {"index": part.index, "id": part.id, "type": "function", "function": function}
    return {"tool_calls": [call]}


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tokens: list[TextToken] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    finished: Finished | None = None


class ChatAnswer:
    """The one object of an answer that is not streamed."""

    def __init__(self, head: Head, shape: Shape) -> None:
        self._head = head
        self._shape = shape
        self._choices = [_Choice() for _ in range(shape.choices)]
        self._prompt: list[TextToken] = []
        self._usage: Usage | None = None

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        match event:
            case Text(prompt=True):
                self._prompt += event.tokens if event.choice == 0 else ()
            case Text():
                choice = self._choices[event.choice]
                choice.texts.append(event.text)
                choice.tokens += event.tokens
            case Reasoning():
                self._choices[event.choice].thoughts.append(event.text)
            case ToolCallPart():
                call = self._choices[event.choice].calls.setdefault(event.index, _Call())
                call.id, call.name = call.id or event.id, call.name or event.name
                call.arguments.append(event.arguments)
            case Finished():
                self._choices[event.choice].finished = event
            case Usage():
                self._usage = event

    def body(self) -> bytes:
        """The object. Raises: Internal when the events ended before their time."""
        if self._usage is None:
            raise Internal("the answer ended before its end")
        document: dict[str, object] = {
            "choices": [self._choice(at, choice) for at, choice in enumerate(self._choices)],
            "usage": usage_object(self._usage),
        }
        if self._prompt:
            document["prompt_logprobs"] = prompt_logprobs(self._prompt)
        return b"{%b,%b" % (self._head.rendered("chat.completion"), _dumps(document)[1:])

    def _choice(self, at: int, choice: _Choice) -> dict[str, object]:
        if choice.finished is None:
            raise Internal("the answer ended before its end")
        text = "".join(choice.texts)
        message: dict[str, object] = {
            "role": "assistant",
            "content": text if text or not choice.calls else None,
            "refusal": None,
            "annotations": [],
        }
        if choice.thoughts and self._shape.reasoning:
            message["reasoning_content"] = message["reasoning"] = "".join(choice.thoughts)
        if choice.calls:
            calls = [choice.calls[index] for index in sorted(choice.calls)]
            functions = [{"name": call.name, "arguments": "".join(call.arguments)} for call in calls]
            if self._shape.functions:
                message["function_call"] = functions[0]
            else:
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": function}
                    for call, function in zip(calls, functions, strict=True)
                ]
        logprobs: object = None
        if self._shape.logprobs:
            logprobs = {"content": chat_logprobs(choice.tokens, self._shape.tokens_as_ids), "refusal": None}
        return {
            "index": at, "message": message, "logprobs": logprobs,
            "finish_reason": finish_reason(choice.finished, self._shape), "stop_reason": choice.finished.stop,
        }  # fmt: skip
