"""Answers that are kept for their callers (`core.responses.Responses`), and those that are made behind their backs.

An answer holds the whole conversation before it, so that it can be gone on from when the earlier ones are gone. One
that nobody waits for is a task of this process; what it was asked is kept too, so that it begins anew when the process
was ended before it was answered, unless somebody may have read a part of its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import msgspec

from penstock.core.errors import (
    Internal,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    PenstockError,
    QuotaExceeded,
    TooLarge,
)
from penstock.core.responses import UNFINISHED, AnswersWishes, EventsPart, Step, StoredResponse, Wish
from penstock.runtime.language.pauses import pauses
from penstock.runtime.language.shelves import Shelf

log = logging.getLogger("penstock.responses")

KEEP_S: Final = 7 * 24 * 3600.0
WINDOW_S: Final = 24 * 3600.0  # in which one that nobody waits for is answered
_FOLLOW_S: Final = 10.0  # the longest wait for one more event
_TOO_LARGE: Final = "the answer is larger than one may be"
_MOST_TRIES: Final = 3  # starts of the server: what ends it each time is not asked for ever


@dataclass(frozen=True, slots=True)
class ResponseBounds:
    """What is kept at most. A caller's own part leaves room for others."""

    one_bytes: int = 16 << 20
    caller_bytes: int = 64 << 20
    all_bytes: int = 256 << 20
    caller_count: int = 1000
    all_count: int = 10_000
    caller_unfinished: int = 64
    all_unfinished: int = 512


class _Head(msgspec.Struct):
    """`parts` are the sizes of what the body consists of: document, items, then the request's body while it is
    unfinished, else the events."""

    owner: str
    status: str
    created: float
    size: int
    parts: tuple[int, int, int]
    background: bool = False
    streamed: bool = False
    tries: int = 0


@dataclass(slots=True)
class _Running:
    """One that is being made."""

    wish: Wish
    stored: StoredResponse
    deadline: float  # the loop's clock
    events: list[bytes] = field(default_factory=list)
    size: int = 0  # of the events
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


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
        self._shelf = shelf
        self._clock = clock
        self._bounds = bounds or ResponseBounds()
        self._heads: dict[str, _Head] = {}  # the oldest first
        self._own: dict[str, dict[str, _Head]] = {}  # by owner
        self._sizes: dict[str, int] = {}  # by owner, in bytes
        self._all_bytes = 0
        self._running: dict[str, _Running] = {}
        self._closed = False

    async def restore(self) -> None:
        """Takes up what the shelf holds; what is unfinished begins with `resume`."""
        found: list[tuple[str, _Head]] = []
        for id, head in (await self._shelf.heads()).items():
            try:
                found.append((id, msgspec.json.decode(head, type=_Head)))
            except msgspec.DecodeError as error:  # of another release
                log.error("response_unreadable", extra={"response": id, "reason": str(error)})
        for id, kept in sorted(found, key=lambda one: one[1].created):
            self._insert(id, kept)
        self.forget_old()

    async def resume(self) -> None:
        """Begins anew what was unfinished when the process ended."""
        for id, head in list(self._heads.items()):
            if head.status in UNFINISHED and id not in self._running:
                try:
                    await self._resume(id, head)
                except PenstockError as error:
                    log.error("response_not_resumed", extra={"response": id, "reason": error.message})

    async def close(self) -> None:
        """Ends all work, and returns when none is left. On a shelf that lasts, it begins anew at the next start."""
        self._closed = True
        for running in self._running.values():
            running.changed.set()
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what is kept ---

    async def keep(self, caller: str, id: str, status: str, document: bytes, items: bytes) -> bool:
        """See `core.responses.Responses`, also of the methods below."""
        head = _Head(caller, status, self._clock(), 0, (0, 0, 0))
        return await self._put(id, head, document, items, b"")

    async def find(self, caller: str, id: str) -> StoredResponse:
        head = self._find(caller, id)
        if (running := self._running.get(id)) is not None:
            return running.stored
        document = (await self._parts(id, head))[0]
        return StoredResponse(id, head.status, document, head.background, head.streamed)

    async def items(self, caller: str, id: str) -> bytes:
        head = self._find(caller, id)
        if (running := self._running.get(id)) is not None:
            return running.wish.items
        return (await self._parts(id, head))[1]

    async def remove(self, caller: str, id: str) -> None:
        self._find(caller, id)
        await self._stop(id)
        self._take(id)
        await self._shelf.drop(id)

    async def events(self, caller: str, id: str, after: int) -> EventsPart:
        head = self._find(caller, id)
        if not head.streamed:
            raise InvalidInput("the events of this response are not kept: it was not begun with both background and "
                               "stream", parameter="stream", problem="invalid_value")  # fmt: skip
        running = self._running.get(id)
        if running is None:
            kept = msgspec.msgpack.decode((await self._parts(id, head))[2], type=list[bytes])
            return EventsPart(kept[after:], True)
        if after >= len(running.events) and running.stored.status in UNFINISHED and not self._closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.changed.wait(), _FOLLOW_S)
        ended = running.stored.status not in UNFINISHED
        if self._closed and not ended and after >= len(running.events):
            raise NotReady("the server is stopping")
        return EventsPart(running.events[after:], ended)

    def _find(self, caller: str, id: str) -> _Head:
        head = self._heads.get(id)
        if head is None and self._shelf.damaged(id):
            raise Internal(f"what was kept of {id} is damaged; the server's log says where")
        if head is None or head.owner != caller or self._old(id, head):
            raise NotFound(f"Response with id '{id[:128]}' not found.")
        return head

    async def _parts(self, id: str, head: _Head) -> tuple[bytes, bytes, bytes]:
        body = await self._shelf.body(id)
        first, second, third = head.parts
        if len(body) != first + second + third:
            raise Internal(f"what was kept of {id} is damaged")
        return body[:first], body[first : first + second], body[first + second :]

    async def _put(self, id: str, head: _Head, document: bytes, items: bytes, third: bytes) -> bool:
        head.parts = (len(document), len(items), len(third))
        head.size = sum(head.parts)
        if head.size > self._bounds.one_bytes:
            return False
        before = self._heads.get(id)
        if before is not None:
            self._drop(id, before)
        self._make_room(head)
        self._insert(id, head)
        try:
            await self._shelf.put(id, msgspec.json.encode(head), document + items + third)
        except BaseException:
            if self._heads.get(id) is head:
                self._drop(id, head)
                if before is not None:
                    self._insert(id, before)
                else:
                    self._shelf.discard(id)
            raise
        return True

    def _insert(self, id: str, head: _Head) -> None:
        self._heads[id] = head
        self._own.setdefault(head.owner, {})[id] = head
        self._sizes[head.owner] = self._sizes.get(head.owner, 0) + head.size
        self._all_bytes += head.size

    def _drop(self, id: str, head: _Head) -> None:
        del self._heads[id]
        own = self._own[head.owner]
        del own[id]
        self._sizes[head.owner] -= head.size
        self._all_bytes -= head.size
        if not own:
            del self._own[head.owner], self._sizes[head.owner]

    def _take(self, id: str) -> None:
        self._running.pop(id, None)
        if (head := self._heads.get(id)) is not None:
            self._drop(id, head)

    def _make_room(self, new: _Head) -> None:
        """The oldest go, the caller's own first; not those that are being made."""
        bounds, owner = self._bounds, new.owner
        self.forget_old()
        for id, head in list(self._own.get(owner, {}).items()):
            own = self._own.get(owner, {})
            if len(own) < bounds.caller_count and self._sizes.get(owner, 0) + new.size <= bounds.caller_bytes:
                break
            if head.status not in UNFINISHED:
                self._forget(id)
        while len(self._heads) >= bounds.all_count or self._all_bytes + new.size > bounds.all_bytes:
            first = next((id for id, head in self._heads.items() if head.status not in UNFINISHED), None)
            if first is None:
                return
            self._forget(first)

    def _old(self, id: str, head: _Head) -> bool:
        return self._clock() - head.created > KEEP_S and head.status not in UNFINISHED

    def forget_old(self) -> None:
        """What is too old goes, the oldest first. Called now and then."""
        while (first := next(iter(self._heads), None)) is not None and self._old(first, self._heads[first]):
            self._forget(first)

    def _forget(self, id: str) -> None:
        self._take(id)
        self._shelf.discard(id)

    # --- what is being made ---

    async def begin(self, caller: str, wish: Wish) -> None:
        if self._closed:
            raise NotReady("the server is stopping")
        unfinished = [head for head in self._heads.values() if head.status in UNFINISHED]
        if sum(head.owner == caller for head in unfinished) >= self._bounds.caller_unfinished:
            raise QuotaExceeded(
                f"you have {self._bounds.caller_unfinished} responses in the background that are not finished, the "
                "most that one caller may have", retry_after_s=10,
            )  # fmt: skip
        if len(unfinished) >= self._bounds.all_unfinished:
            raise Overloaded(f"{len(unfinished)} responses in the background are not finished", retry_after_s=10)
        head = _Head(caller, "queued", self._clock(), 0, (0, 0, 0), True, wish.streamed)
        if not await self._put(wish.id, head, wish.document, wish.items, wish.body):
            raise TooLarge(f"a response in the background may have at most {self._bounds.one_bytes} bytes with its "
                           "conversation")  # fmt: skip
        self._start(head, wish)

    async def cancel(self, caller: str, id: str) -> StoredResponse:
        if not self._find(caller, id).background:
            raise InvalidInput("Cannot cancel a synchronous response: close its connection instead.", parameter="id")
        if (running := self._running.get(id)) is not None:
            await self._stop(id)
            if running.stored.status in UNFINISHED:
                await self._end(running, "cancelled", "the response was cancelled")
        return await self.find(caller, id)

    async def _resume(self, id: str, head: _Head) -> None:
        document, items, body = await self._parts(id, head)
        wish = Wish(id, document, items, body, head.streamed)
        head.tries += 1
        running = self._start(head, wish, begin=not head.streamed and head.tries < _MOST_TRIES)
        if running.task is None:
            why = "a part of its stream may have been read" if head.streamed else f"{head.tries} times"
            await self._end(running, "failed", f"the server ended before the response did ({why}); ask again")
        else:
            await self._shelf.put(id, msgspec.json.encode(head), document + items + body)

    def _start(self, head: _Head, wish: Wish, begin: bool = True) -> _Running:
        stored = StoredResponse(wish.id, "queued", wish.document, True, wish.streamed)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(0.0, head.created + WINDOW_S - self._clock())
        running = self._running[wish.id] = _Running(wish, stored, deadline)
        if begin and not self._closed:
            running.task = loop.create_task(self._run(head.owner, running))
        return running

    async def _run(self, caller: str, running: _Running) -> None:
        loop = asyncio.get_running_loop()
        for pause_s in pauses():
            try:
                again_s = await self._try(caller, running)
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

    async def _try(self, caller: str, running: _Running) -> float | None:
        """Seconds until it is worth another try; None when it has ended."""
        number = 0
        steps = cast(Any, self._answers.steps(running.wish, caller, running.deadline))
        async with aclosing(steps):
            async for step in steps:
                if step.again_s is not None:
                    return float(step.again_s)
                if step.event:
                    number += 1
                    if number > len(running.events):  # else of an earlier try
                        self._event(running, step.event)
                if running.size > self._bounds.one_bytes:
                    await self._end(running, "failed", _TOO_LARGE)
                    return None
                if step.status and step.status not in UNFINISHED:
                    await self._settle(running, replace(step, event=b""))
                    return None
                if step.status:
                    running.stored = replace(running.stored, status=step.status, document=step.document)
        raise Internal("the answer ended before its end")

    def _event(self, running: _Running, event: bytes) -> None:
        if running.wish.streamed:
            running.events.append(event)
            running.size += len(event)
            running.changed.set()
            running.changed = asyncio.Event()

    async def _stop(self, id: str) -> None:
        running = self._running.get(id)
        if running is not None and running.task is not None:
            running.task.cancel()
            await asyncio.wait({running.task})

    async def _end(self, running: _Running, status: str, message: str) -> None:
        await self._settle(running, self._answers.cut(running.stored.document, status, message, len(running.events)))

    async def _settle(self, running: _Running, step: Step) -> None:
        """Keeps what it came to; when it is too large to be kept, that it failed."""
        wish, id = running.wish, running.wish.id
        if step.event:
            self._event(running, step.event)
        running.stored = replace(running.stored, status=step.status, document=step.document)
        running.changed.set()
        head = self._heads.get(id)
        if head is None:
            self._running.pop(id, None)
            return
        head.status = step.status
        ended = _Head(head.owner, step.status, head.created, 0, (0, 0, 0), True, wish.streamed, head.tries)
        events = msgspec.msgpack.encode(running.events) if wish.streamed else b""
        try:
            if not await self._put(id, ended, step.document, wish.items, events):
                cut = self._answers.cut(wish.document, "failed", _TOO_LARGE, 0)
                ended.status = cut.status
                await self._put(id, ended, cut.document, b"[]", msgspec.msgpack.encode([]) if wish.streamed else b"")
        except PenstockError as error:  # it stays in memory, and is made anew after a restart
            log.error("response_not_kept", extra={"response": id, "reason": error.message})
            return
        self._running.pop(id, None)
