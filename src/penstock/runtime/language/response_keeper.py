"""Answers that are kept for their callers (`core.responses.Responses`), and those that are made behind their backs.

An answer holds the whole conversation before it, so that it can be gone on from when the earlier ones are gone. One
that nobody waits for is a task of this process; what it was asked is kept too, so that it begins anew when the process
was ended before it was answered, unless somebody may have read a part of its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar, cast

import msgspec

from penstock.core.errors import Internal, InvalidInput, NotReady, Overloaded, PenstockError, QuotaExceeded, TooLarge
from penstock.core.responses import UNFINISHED, AnswersWishes, EventsPart, Step, StoredResponse, Wish
from penstock.runtime.language.kept_responses import Head, KeptResponses, ResponseBounds
from penstock.runtime.language.pauses import pauses
from penstock.runtime.language.shelves import Shelf

T = TypeVar("T")

log = logging.getLogger("penstock.responses")

WINDOW_S: Final = 24 * 3600.0  # in which one that nobody waits for is answered
_FOLLOW_S: Final = 10.0  # the longest wait for one more event
_CLOSE_S: Final = 10.0  # the longest wait at a stop, for a disk that is stuck
_TOO_LARGE: Final = "the answer is larger than one may be"
_MOST_ANEW: Final = 3  # what ends the server each time is not asked for ever


@dataclass(slots=True)
class _Running:
    """One that is being made; until `resume` without a task."""

    head: Head
    wish: Wish
    stored: StoredResponse
    deadline: float  # the loop's clock
    events: list[bytes] = field(default_factory=list)
    size: int = 0  # of the events
    task: asyncio.Task[None] | None = None
    counted: bool = False  # this start is among the tries
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, event: bytes) -> None:
        """One more event for those who follow."""
        self.events.append(event)
        self.size += len(event)
        self.changed.set()
        self.changed = asyncio.Event()


class ResponseKeeper:
    """The answers of one server. `clock` tells the time of day. Closed by its owner."""

    def __init__(
        self,
        answers: AnswersWishes,
        shelf: Shelf,
        clock: Callable[[], float],
        bounds: ResponseBounds | None = None,
    ) -> None:
        self._answers = answers
        self._clock = clock
        self._kept = KeptResponses(shelf, clock, bounds)
        self._running: dict[str, _Running] = {}
        self._apart: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def restore(self) -> None:
        """Takes up what the shelf holds; what is unfinished begins with `resume`, or has failed."""
        for id, head in await self._kept.restore():
            await self._take_up(id, head)

    async def resume(self) -> None:
        """Begins anew what was unfinished when the process ended."""
        for running in list(self._running.values()):
            self._start(running)

    async def close(self) -> None:
        """Ends all work, and returns when none is left. On a shelf that lasts, it begins anew at the next start."""
        self._closed = True
        for running in self._running.values():
            running.changed.set()
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for id, running in self._running.items():
            if running.counted and running.stored.status in UNFINISHED:  # it was not what ended the process
                running.counted = False
                self._detach(self._keep_tries(id, running, -1))
        if self._apart:
            _, stuck = await asyncio.wait(set(self._apart), timeout=_CLOSE_S)
            for task in stuck:
                task.cancel()

    def forget_old(self) -> None:
        """What is too old goes. Called now and then."""
        self._kept.forget_old()
        for id in [id for id in self._running if self._kept.head(id) is None]:  # ended, and not kept for want of room
            if self._running[id].stored.status not in UNFINISHED:
                del self._running[id]

    # --- what is kept ---

    async def keep(self, caller: str, id: str, status: str, document: bytes, items: bytes) -> bool:
        """See `core.responses.Responses`, also of the methods below."""
        if len(document) + len(items) > self._kept.bounds.one_bytes:
            return False
        await self._kept.put(id, Head(caller, status, self._clock()), document, items, b"")
        return True

    async def find(self, caller: str, id: str) -> StoredResponse:
        head = self._kept.find(caller, id)
        if (running := self._running.get(id)) is not None:
            return running.stored
        document = (await self._kept.parts(id, head))[0]
        return StoredResponse(id, head.status, document, head.background, head.streamed)

    async def items(self, caller: str, id: str) -> bytes:
        head = self._kept.find(caller, id)
        if (running := self._running.get(id)) is not None:
            return running.wish.items
        return (await self._kept.parts(id, head))[1]

    async def remove(self, caller: str, id: str) -> None:
        self._kept.find(caller, id)
        await asyncio.shield(self._detach(self._remove(id)))

    async def _remove(self, id: str) -> None:
        await self._stop(id)
        self._running.pop(id, None)
        await self._kept.remove(id)

    async def events(self, caller: str, id: str, after: int) -> EventsPart:
        head = self._kept.find(caller, id)
        if not head.streamed:
            raise InvalidInput("the events of this response are not kept: it was not begun with both background and "
                               "stream", parameter="stream", problem="invalid_value")  # fmt: skip
        running = self._running.get(id)
        if running is None:
            kept = msgspec.msgpack.decode((await self._kept.parts(id, head))[2], type=list[bytes])
            return EventsPart(kept[after:], True)
        if after >= len(running.events) and running.stored.status in UNFINISHED and not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_S):
                    await running.changed.wait()
        ended = running.stored.status not in UNFINISHED
        if self._closed and not ended and after >= len(running.events):
            raise NotReady("the server is stopping")
        return EventsPart(running.events[after:], ended)

    # --- what is being made ---

    async def begin(self, caller: str, wish: Wish) -> None:
        if self._closed:
            raise NotReady("the server is stopping")
        self._kept.check_another(caller)
        if len(wish.document) + len(wish.items) + len(wish.body) > self._kept.bounds.one_bytes:
            raise TooLarge(f"a response in the background may have at most {self._kept.bounds.one_bytes} bytes with "
                           "its conversation")  # fmt: skip
        head = Head(caller, "queued", self._clock(), background=True, streamed=wish.streamed)
        await self._kept.put(wish.id, head, wish.document, wish.items, wish.body)
        self._start(self._add(head, wish))

    async def cancel(self, caller: str, id: str) -> StoredResponse:
        if not self._kept.find(caller, id).background:
            raise InvalidInput("Cannot cancel a synchronous response: close its connection instead.", parameter="id")
        if (running := self._running.get(id)) is not None:
            await asyncio.shield(self._detach(self._cancel(id, running)))
        return await self.find(caller, id)

    async def _cancel(self, id: str, running: _Running) -> None:
        await self._stop(id)
        if running.stored.status in UNFINISHED:
            await self._end(running, "cancelled", "the response was cancelled")

    def _detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that is done also when whoever asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)
        return task

    async def _take_up(self, id: str, head: Head) -> None:
        """An unfinished one of an earlier process."""
        try:
            document, items, body = await self._kept.parts(id, head)
        except PenstockError as error:
            log.error("response_not_resumed", extra={"response": id, "reason": error.message})
            known = msgspec.json.encode({"id": id, "created_at": int(head.created)})
            await self._end(self._add(head, Wish(id, known, b"[]", b"", head.streamed)), "failed", error.message)
            return
        running = self._add(head, Wish(id, document, items, body, head.streamed))
        if head.streamed or head.tries > _MOST_ANEW:
            why = "a part of its stream may have been read" if head.streamed else f"{head.tries} times"
            await self._end(running, "failed", f"the server ended before the response did ({why}); ask again")

    def _add(self, head: Head, wish: Wish) -> _Running:
        stored = StoredResponse(wish.id, "queued", wish.document, True, wish.streamed)
        deadline = asyncio.get_running_loop().time() + max(0.0, head.created + WINDOW_S - self._clock())
        running = self._running[wish.id] = _Running(head, wish, stored, deadline)
        return running

    def _start(self, running: _Running) -> None:
        if running.task is None and running.stored.status in UNFINISHED and not self._closed:
            running.task = asyncio.get_running_loop().create_task(self._run(running))

    async def _run(self, running: _Running) -> None:
        loop = asyncio.get_running_loop()
        for pause_s in pauses():
            try:
                again_s = await self._try(running)
            except (TooLarge, QuotaExceeded, Overloaded) as error:
                await self._end(running, "failed", error.message)
                return
            except Exception:  # outermost: whoever asks for it is told
                log.exception("response_failed", extra={"response": running.wish.id})
                await self._end(running, "failed", "internal error")
                return
            if again_s is None:
                return
            wait_s = max(pause_s, again_s)
            if loop.time() + wait_s > running.deadline:
                await self._end(running, "failed", "the model had no room for it in time")
                return
            await asyncio.sleep(wait_s)

    async def _try(self, running: _Running) -> float | None:
        """Seconds until it is worth another try; None when it has ended.

        Raises: TooLarge, QuotaExceeded, Overloaded when its events take too much room.
        """
        number = 0
        steps = cast(Any, self._answers.steps(running.wish, running.head.owner, running.deadline))
        async with aclosing(steps):
            async for step in steps:
                if step.again_s is not None:
                    return float(step.again_s)
                if step.status and step.status not in UNFINISHED:
                    await self._settle(running, step)
                    return None
                if step.event:
                    number += 1
                    if number > len(running.events) and running.wish.streamed:  # else of an earlier try
                        if running.size + len(step.event) > self._kept.bounds.one_bytes:
                            raise TooLarge(_TOO_LARGE)
                        self._kept.grow(running.wish.id, len(step.event))
                        running.tell(step.event)
                if step.status:
                    running.stored = replace(running.stored, status=step.status, document=step.document)
                    await self._count(running)
        raise Internal("the answer ended before its end")

    async def _count(self, running: _Running) -> None:
        """It begins to be answered: what ends the process from now on may be the answer."""
        if not running.counted and not running.wish.streamed:
            running.counted = True
            await self._keep_tries(running.wish.id, running, 1)

    async def _keep_tries(self, id: str, running: _Running, more: int) -> None:
        running.head.tries += more
        wish = running.wish
        try:
            await self._kept.put_head(id, running.head, wish.document + wish.items + wish.body)
        except PenstockError as error:
            log.error("response_tries_not_kept", extra={"response": id, "reason": error.message})

    async def _stop(self, id: str) -> None:
        running = self._running.get(id)
        if running is not None and running.task is not None:
            running.task.cancel()
            await asyncio.wait({running.task})

    async def _end(self, running: _Running, status: str, message: str) -> None:
        await self._settle(running, self._answers.cut(running.stored.document, status, message, len(running.events)))

    async def _settle(self, running: _Running, step: Step) -> None:
        """Keeps what it came to; when it is too large to be kept, that it failed."""
        wish, items = running.wish, running.wish.items
        events = _packed(running, running.events, step.event)
        if len(step.document) + len(items) + len(events) > self._kept.bounds.one_bytes:
            step = self._answers.cut(wish.document, "failed", _TOO_LARGE, len(running.events))
            # Nothing in the place of each event, so that the last one keeps its number.
            items, events = b"[]", _packed(running, [b""] * len(running.events), step.event)
        running.stored = replace(running.stored, status=step.status, document=step.document)
        if wish.streamed and step.event:
            running.tell(step.event)
        running.changed.set()
        await asyncio.shield(self._detach(self._keep_end(running, step, items, events)))

    async def _keep_end(self, running: _Running, step: Step, items: bytes, events: bytes) -> None:
        id, head = running.wish.id, running.head
        if self._kept.head(id) is head:  # else it was removed meanwhile
            head.status = step.status
            ended = Head(head.owner, step.status, head.created, background=True, streamed=head.streamed)
            try:
                await self._kept.put(id, ended, step.document, items, events)
            except PenstockError as error:  # it stays in memory, and is made anew after a restart
                log.error("response_not_kept", extra={"response": id, "reason": error.message})
                return
        self._running.pop(id, None)


def _packed(running: _Running, events: list[bytes], last: bytes) -> bytes:
    if not running.wish.streamed:
        return b""
    return msgspec.msgpack.encode([*events, last] if last else events)
