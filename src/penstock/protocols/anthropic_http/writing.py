"""Events of an answer as Anthropic's objects: one message, or the events of its stream.

A stream's text is the hot path: all of an event but the text is made once for each block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import orjson

from penstock.core.errors import Internal
from penstock.core.language import Began, Event, Finished, Reasoning, Text, ToolCallPart, Usage

_dumps: Final = orjson.dumps
_REASONS: Final = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def stop_reason(event: Finished) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`."""
    if event.reason == "stop" and isinstance(event.stop, str):
        return "stop_sequence", event.stop
    return _REASONS.get(event.reason, "end_turn"), None


def usage_object(usage: Usage) -> dict[str, object]:
    """Tokens as Anthropic counts them: those of the prompt that were cached are apart from the others."""
    cached = max(usage.cached_tokens, 0)
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _event(name: bytes, document: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, document)


class MessageStream:
    """Events. `encode` gives the bytes of one event, `end` what comes after the last one.

    A stream is a sequence of blocks: text, thoughts, or the call of a tool. A part of another block than the open one
    ends that one. The head is held until there is something to say: until then an error is an ordinary answer.
    """

    def __init__(self, identity: str, model: str, thoughts: bool = True) -> None:
        self._identity = identity
        self._model = model
        self._thoughts = thoughts
        self._prompt_tokens = 0
        self._begun = False
        self._blocks = -1  # the open block's place, or the last one's
        self._open: tuple[str, int] | None = None  # kind, and which call
        self._calls_ended: set[int] = set()
        self._before = b""  # of a piece of the open block, up to its text
        self._finished: Finished | None = None
        self._usage: Usage | None = None

    def encode(self, event: Event) -> bytes:
        match event:
            case Text(prompt=False):
                return self._piece(("text", 0), event.text)
            case Reasoning():
                return self._piece(("thinking", 0), event.text if self._thoughts else "")
            case ToolCallPart():
                return self._piece(("tool_use", event.index), event.arguments, event.id, event.name)
            case Began():
                self._prompt_tokens = event.prompt_tokens
            case Finished():
                self._finished = event
            case Usage():
                self._usage = event
        return b""

    def _piece(self, block: tuple[str, int], text: str, identity: str = "", name: str = "") -> bytes:
        parts = []
        if block != self._open:
            if not text and block[0] == "text":  # tokens that made nothing visible
                return b""
            if not self._begun:
                parts.append(self._head())
            parts += (self._end_block(), self._begin_block(block, identity, name))
        if text:
            parts += (self._before, _dumps(text), b"}}\n\n")
        return b"".join(parts)

    def _head(self) -> bytes:
        self._begun = True
        message: dict[str, object] = {
            "id": self._identity, "type": "message", "role": "assistant", "model": self._model, "content": [],
            "stop_reason": None, "stop_sequence": None,
            "usage": {
                "input_tokens": self._prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }  # fmt: skip
        return _event(b"message_start", _dumps({"type": "message_start", "message": message})) + _PING

    def _begin_block(self, block: tuple[str, int], identity: str, name: str) -> bytes:
        kind, index = block
        if kind == "tool_use" and index in self._calls_ended:
            raise Internal("a tool call went on after it had ended")
        self._open = block
        self._blocks += 1
        if kind == "text":
            begun: dict[str, object] = {"type": "text", "text": ""}
            delta = b'"text_delta","text":'
        elif kind == "thinking":
            begun = {"type": "thinking", "thinking": "", "signature": ""}
            delta = b'"thinking_delta","thinking":'
        else:
            begun = {"type": "tool_use", "id": identity, "name": name, "input": {}}
            delta = b'"input_json_delta","partial_json":'
        self._before = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b'
            % (self._blocks, delta)
        )
        start = {"type": "content_block_start", "index": self._blocks, "content_block": begun}
        return _event(b"content_block_start", _dumps(start))

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        kind, index = self._open
        self._open = None
        signed = b""
        if kind == "tool_use":
            self._calls_ended.add(index)
        elif kind == "thinking":  # clients wait for one; there is nothing to sign here
            delta = {"type": "signature_delta", "signature": ""}
            document = {"type": "content_block_delta", "index": self._blocks, "delta": delta}
            signed = _event(b"content_block_delta", _dumps(document))
        stop = {"type": "content_block_stop", "index": self._blocks}
        return signed + _event(b"content_block_stop", _dumps(stop))

    def end(self) -> bytes:
        """The end of the last block and of the message. Raises: Internal when the events ended before their time."""
        if self._finished is None or self._usage is None:
            raise Internal("the answer ended before its end")
        head = b"" if self._begun else self._head()
        reason, sequence = stop_reason(self._finished)
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_object(self._usage),
        }
        return head + self._end_block() + _event(b"message_delta", _dumps(delta)) + _STOP


@dataclass(slots=True)
class _Block:
    kind: str
    call: int = 0
    id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)


class MessageAnswer:
    """The one message of an answer that is not streamed."""

    def __init__(self, identity: str, model: str, thoughts: bool = True) -> None:
        self._identity = identity
        self._model = model
        self._thoughts = thoughts
        self._blocks: list[_Block] = []
        self._finished: Finished | None = None
        self._usage: Usage | None = None

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        match event:
            case Text(prompt=False):
                if event.text:
                    self._block("text").texts.append(event.text)
            case Reasoning():
                self._block("thinking").texts.append(event.text if self._thoughts else "")
            case ToolCallPart():
                block = self._block("tool_use", event.index)
                block.id, block.name = block.id or event.id, block.name or event.name
                block.texts.append(event.arguments)
            case Finished():
                self._finished = event
            case Usage():
                self._usage = event

    def _block(self, kind: str, call: int = 0) -> _Block:
        if kind == "tool_use":
            known = next((block for block in self._blocks if block.kind == kind and block.call == call), None)
        else:
            known = self._blocks[-1] if self._blocks and self._blocks[-1].kind == kind else None
        if known is None:
            known = _Block(kind, call)
            self._blocks.append(known)
        return known

    def body(self) -> bytes:
        """The message. Raises: Internal when the events ended before their time, or a call is no JSON object."""
        if self._finished is None or self._usage is None:
            raise Internal("the answer ended before its end")
        reason, sequence = stop_reason(self._finished)
        return _dumps({
            "id": self._identity, "type": "message", "role": "assistant", "model": self._model,
            "content": [self._content(block) for block in self._blocks],
            "stop_reason": reason, "stop_sequence": sequence, "usage": usage_object(self._usage),
        })  # fmt: skip

    def _content(self, block: _Block) -> dict[str, object]:
        text = "".join(block.texts)
        if block.kind == "text":
            return {"type": "text", "text": text}
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": self._input(text)}

    def _input(self, text: str) -> object:
        """The call's arguments. An answer that was cut off leaves half an object: nothing, then."""
        try:
            found = orjson.loads(text or "{}")
        except ValueError:
            if self._finished is not None and self._finished.reason != "tool_calls":
                return {}
            raise Internal("the model called a tool with what is no JSON") from None
        if not isinstance(found, dict):
            raise Internal("the model called a tool with what is no JSON object")
        return found
