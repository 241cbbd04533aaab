"""Responses for which nobody waits (`background`): their steps from queued to the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Final

import orjson

from penstock.core.door import Door
from penstock.core.errors import Internal, NotReady, Overloaded, PenstockError, QuotaExceeded
from penstock.core.fields import Fields
from penstock.core.language import Began
from penstock.core.language_calls import named_model
from penstock.core.responses import Step, Wish
from penstock.protocols.openai_http.answering import asked
from penstock.protocols.openai_http.responses import decode
from penstock.protocols.openai_http.responses_wire import Response, event_of, failure
from penstock.protocols.openai_http.shapes import Head

# What a client reads of every response, where the rest was lost.
_LEAST: Final[Mapping[str, object]] = {
    "object": "response", "model": "", "output": [], "tools": [], "tool_choice": "auto", "parallel_tool_calls": True,
    "background": True, "store": True, "usage": None, "incomplete_details": None, "metadata": {},
}  # fmt: skip
_LATER = (Overloaded, NotReady, QuotaExceeded)  # nothing was done, and trying again may help


class BackgroundResponses:
    """The protocol's part of answers that are made behind their callers' backs."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def steps(self, wish: Wish, caller: str, deadline: float) -> AsyncIterator[Step]:
        """See `core.responses.AnswersWishes`."""
        before = orjson.loads(wish.document)
        head = Head(wish.id, int(before["created_at"]), str(before["model"]), "")
        response: Response | None = None
        begun = False
        try:
            fields = Fields({**orjson.loads(wish.body), "input": orjson.loads(wish.items)})
            _, found = await named_model(fields, self._door)
            wished = decode(fields)
            ask = wished.ask
            ask.adapter, ask.id, ask.caller, ask.deadline = found.adapter, wish.id, caller, deadline
            response = Response(head, wished.told, ask.logprobs is not None)
            for event in _each(response.queued()[0]):
                yield Step(event=event)
            async with aclosing(asked(found.model, ask)) as events:
                async for event_now in events:
                    begun = True
                    if isinstance(event_now, Began):
                        first, document = response.started()
                        yield Step("in_progress", document)
                        for event in _each(first):
                            yield Step(event=event)
                    elif piece := response.encode(event_now):
                        for event in _each(piece):
                            yield Step(event=event)
            for event in _each(response.last_item()):
                yield Step(event=event)
            yield Step(response.status, response.whole(), response.last_event())
        except _LATER as error:
            if begun and response is not None:
                yield _failed(response, error)
            else:
                yield Step(again_s=error.retry_after_s or 1.0)
        except PenstockError as error:
            yield self.cut(wish.document, "failed", error.message, 0) if response is None else _failed(response, error)

    def cut(self, document: bytes, status: str, message: str, events: int) -> Step:
        """See `core.responses.AnswersWishes`."""
        error = failure(Internal(message)) if status == "failed" else None
        cut = {**_LEAST, **orjson.loads(document), "status": status, "error": error}
        kind = "response.failed" if status == "failed" else "response.incomplete"
        return Step(status, orjson.dumps(cut), event_of(kind, events, {"response": cut}))


def _failed(response: Response, error: PenstockError) -> Step:
    document = response.cut("failed", error)
    last = event_of("response.failed", response.events, {"response": orjson.Fragment(document)})
    return Step("failed", document, last)


def _each(events: bytes) -> Iterator[bytes]:
    """One by one: each ends with an empty line, and JSON has no line ends."""
    for event in events.split(b"\n\n")[:-1]:
        yield event + b"\n\n"
