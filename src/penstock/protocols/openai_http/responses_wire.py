"""Events of an answer as OpenAI's Response: the object, and the events of its stream.

Both come of the same steps: `Response` keeps the items that it has sent, and the object holds them. An answer is a
sequence of items: reasoning, a message, calls of functions. A part of another item than the open one ends that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from penstock.core.errors import Internal, InvalidInput, PenstockError, QuotaExceeded
from penstock.core.language import Began, Event, Finished, Reasoning, Text, TextToken, ToolCallPart, Usage
from penstock.protocols.openai_http.answering import CLOCK
from penstock.protocols.openai_http.failures import error_object
from penstock.protocols.openai_http.response_items import new_id
from penstock.protocols.openai_http.shapes import Head, chat_logprobs

_dumps: Final = orjson.dumps
_CODES: Final = {QuotaExceeded: "rate_limit_exceeded", InvalidInput: "invalid_prompt"}


@dataclass(slots=True)
class _Item:
    kind: str
    call: int = 0  # which of the calls
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)
    tokens: list[TextToken] = field(default_factory=list)
    id: str = ""

    def __post_init__(self) -> None:
        self.id = new_id(self.kind)


class Response:
    """`encode` gives the bytes of an event, `end` what comes after the last one; `add` and `body` give the object."""

    def __init__(self, head: Head, repeated: dict[str, object], logprobs: bool) -> None:
        self._head = head
        self._repeated = repeated
        self._logprobs = logprobs
        self._sequence = 0
        self._begun = False
        self._done: list[dict[str, object]] = []
        self._open: _Item | None = None
        self._calls: set[int] = set()  # that have begun
        self._finished: Finished | None = None
        self._usage: Usage | None = None
        self._queued = False
        self._completed: int | None = None

    @property
    def begun(self) -> bool:
        """Whether an event was sent, with the response's id."""
        return self._begun

    @property
    def events(self) -> int:
        """How many there were."""
        return self._sequence

    @property
    def status(self) -> str:
        """What it came to; only when all events are there."""
        return self._status()

    def tell(self, **members: object) -> None:
        """Repeats other members than before."""
        self._repeated.update(members)

    # --- events in ---

    def encode(self, event: Event) -> bytes:
        match event:
            case Text(prompt=False):
                if not event.text and not event.tokens:
                    return b""
                return self._part("message", event.text, event.tokens)
            case Reasoning():
                return self._part("reasoning", event.text)
            case ToolCallPart():
                return self._call(event)
            case Finished():
                self._finished = event
            case Usage():
                self._usage = event
            case Began():
                pass
        return b""

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        self.encode(event)

    def end(self) -> bytes:
        """The end of the last item and of the response. Raises: Internal when the events ended before their time."""
        return self.last_item() + self.last_event()

    def last_item(self) -> bytes:
        """The end of the last item. Raises: Internal when the events ended before their time."""
        if self._finished is None or self._usage is None:
            raise Internal("the answer ended before its end")
        if self._status() == "completed":
            self._completed = int(CLOCK())
        return self._start() + self._close()

    def last_event(self) -> bytes:
        """The end of the response, after `last_item`."""
        name = "response.completed" if self._status() == "completed" else "response.incomplete"
        return self._event(name, response=self._document(self._status()))

    def body(self) -> bytes:
        """The object. Raises: Internal when the events ended before their time."""
        self.end()
        return self.whole()

    def whole(self) -> bytes:
        """The object, after `last_item`."""
        return _dumps(self._document(self._status()))

    def queued(self) -> tuple[bytes, bytes]:
        """The first events of one that nobody waits for, and the object until it begins."""
        self._queued = True
        document = self._document("queued")
        return (
            self._event("response.created", response=document) + self._event("response.queued", response=document),
            _dumps(document),
        )

    def started(self) -> tuple[bytes, bytes]:
        """The event of its beginning, and the object from then on."""
        return self._start(), _dumps(self._document("in_progress"))

    def cut(self, status: str, error: PenstockError | None = None) -> bytes:
        """The object of one that was not finished: what there was of its items."""
        output = list(self._done)
        if self._open is not None:
            output.append(self._item(self._open, "incomplete"))
        ended = {"output": output, "error": None if error is None else failure(error)}
        return _dumps({**self._document(status), **ended})

    def encode_error(self, error: PenstockError) -> bytes:
        """The last event of a stream that failed. Older clients look at `error`, newer ones at the type."""
        found = error_object(error)
        return self._event("error", message=found["message"], code=found["code"], param=found["param"], error=found)

    # --- items ---

    def _part(self, kind: str, text: str, tokens: tuple[TextToken, ...] = ()) -> bytes:
        item = self._open
        before = b""
        if item is None or item.kind != kind:
            item, before = self._begin(_Item(kind))
        item.texts.append(text)
        if kind == "reasoning":
            delta = self._event("response.reasoning_text.delta", **self._place(item), content_index=0, delta=text)
        else:
            logprobs = chat_logprobs(tokens) if self._logprobs else []
            item.tokens += tokens
            delta = self._event(
                "response.output_text.delta", **self._place(item), content_index=0, delta=text, logprobs=logprobs
            )
        return before + delta

    def _call(self, part: ToolCallPart) -> bytes:
        item = self._open
        before = b""
        if item is None or item.kind != "function_call" or item.call != part.index:
            if part.index in self._calls:
                raise Internal("a tool call went on after it had ended")
            self._calls.add(part.index)
            item, before = self._begin(_Item("function_call", part.index, part.id, part.name))
        if not part.arguments:
            return before
        item.texts.append(part.arguments)
        return before + self._event(
            "response.function_call_arguments.delta", **self._place(item), delta=part.arguments
        )  # fmt: skip

    def _begin(self, item: _Item) -> tuple[_Item, bytes]:
        before = self._start() + self._close()
        self._open = item
        begun = before + self._event(
            "response.output_item.added", output_index=len(self._done), item=self._item(item, "in_progress", empty=True)
        )
        if item.kind != "function_call":
            part = self._content(item, empty=True)
            begun += self._event("response.content_part.added", **self._place(item), content_index=0, part=part)
        return item, begun

    def _close(self) -> bytes:
        item = self._open
        if item is None:
            return b""
        text, place = "".join(item.texts), self._place(item)
        if item.kind == "function_call":
            ended = self._event(
                "response.function_call_arguments.done", **place, name=item.name, arguments=text
            )  # fmt: skip
        else:
            part = self._content(item)
            if item.kind == "reasoning":
                ended = self._event("response.reasoning_text.done", **place, content_index=0, text=text)
            else:
                ended = self._event("response.output_text.done", **place, content_index=0, text=text,
                                    logprobs=part["logprobs"])  # fmt: skip
            ended += self._event("response.content_part.done", **place, content_index=0, part=part)
        cut = self._finished is not None and self._status() == "incomplete"
        document = self._item(item, "incomplete" if cut else "completed")
        ended += self._event("response.output_item.done", output_index=len(self._done), item=document)
        self._done.append(document)
        self._open = None
        return ended

    def _place(self, item: _Item) -> dict[str, object]:
        return {"item_id": item.id, "output_index": len(self._done)}

    def _item(self, item: _Item, status: str, *, empty: bool = False) -> dict[str, object]:
        if item.kind == "function_call":
            return {
                "type": "function_call", "id": item.id, "call_id": item.call_id, "name": item.name,
                "arguments": "".join(item.texts), "status": status,
            }  # fmt: skip
        content = [] if empty else [self._content(item)]
        if item.kind == "reasoning":
            return {"type": "reasoning", "id": item.id, "summary": [], "content": content, "status": status}
        return {"type": "message", "id": item.id, "role": "assistant", "content": content, "status": status}

    def _content(self, item: _Item, *, empty: bool = False) -> dict[str, object]:
        text = "" if empty else "".join(item.texts)
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = chat_logprobs(item.tokens) if self._logprobs else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    # --- the whole ---

    def _start(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        document = self._document("in_progress")
        created = b"" if self._queued else self._event("response.created", response=document)
        return created + self._event("response.in_progress", response=document)

    def _status(self) -> str:
        cut = self._finished is not None and self._finished.reason in ("length", "content_filter")
        return "incomplete" if cut else "completed"

    def _document(self, status: str) -> dict[str, object]:
        incomplete = None
        if status == "incomplete" and self._finished is not None:
            reason = "max_output_tokens" if self._finished.reason == "length" else "content_filter"
            incomplete = {"reason": reason}
        return {
            "id": self._head.id, "object": "response", "created_at": self._head.created, "status": status,
            "background": False, "completed_at": self._completed if status == "completed" else None, "error": None,
            "incomplete_details": incomplete, "model": self._head.model,
            "output": list(self._done), "previous_response_id": None, "store": False, "truncation": "disabled",
            "usage": None if self._usage is None else _usage_object(self._usage), **self._repeated,
        }  # fmt: skip

    def _event(self, kind: str, /, **members: object) -> bytes:
        self._sequence += 1
        return event_of(kind, self._sequence - 1, members)


def event_of(kind: str, number: int, members: Mapping[str, object]) -> bytes:
    """One event of a stream."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _dumps({"type": kind, "sequence_number": number, **members}))


def failure(error: PenstockError) -> dict[str, object]:
    """`error` of a response that failed; clients know a closed set of codes."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "server_error")
    return {"code": code, "message": error.message}


def _usage_object(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": max(usage.cached_tokens, 0), "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
