"""Responses on a shelf: bounded in size, number and age, and each visible to its owner only.

The oldest that have ended go when there is no room. Those that are being made never do: what would not fit beside them
is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from penstock.core.errors import Internal, NotFound, Overloaded, QuotaExceeded
from penstock.core.responses import UNFINISHED
from penstock.runtime.language.shelves import Shelf

log = logging.getLogger("penstock.responses")

KEEP_S: Final = 7 * 24 * 3600.0
_RETRY_S: Final = 10.0


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


class Head(msgspec.Struct):
    """What the shelf keeps of a response beside its body. `parts` are the sizes of what the body consists of: document,
    items, then the request's body while it is unfinished, else the events. `size` is what counts for the bounds."""

    owner: str
    status: str
    created: float
    size: int = 0
    parts: tuple[int, int, int] = (0, 0, 0)
    background: bool = False
    streamed: bool = False
    tries: int = 0  # starts of the server in which it began to be answered


class KeptResponses:
    """Responses by id, the oldest first."""

    def __init__(self, shelf: Shelf, clock: Callable[[], float], bounds: ResponseBounds | None = None) -> None:
        self.bounds = bounds or ResponseBounds()
        self._shelf = shelf
        self._clock = clock
        self._heads: dict[str, Head] = {}
        self._own: dict[str, dict[str, Head]] = {}  # by owner
        self._sizes: dict[str, int] = {}  # by owner, in bytes
        self._all_bytes = 0
        self._unfinished: dict[str, Head] = {}

    async def restore(self) -> list[tuple[str, Head]]:
        """Takes up what the shelf holds, and gives back what is unfinished."""
        found: list[tuple[str, Head]] = []
        for id, text in (await self._shelf.heads()).items():
            try:
                found.append((id, msgspec.json.decode(text, type=Head)))
            except msgspec.DecodeError as error:  # of another release
                log.error("response_unreadable", extra={"response": id, "reason": str(error)})
        for id, head in sorted(found, key=lambda one: one[1].created):
            head.size = sum(head.parts)
            self._insert(id, head)
        self.forget_old()
        return list(self._unfinished.items())

    def head(self, id: str) -> Head | None:
        """Whoever it belongs to."""
        return self._heads.get(id)

    def find(self, caller: str, id: str) -> Head:
        """The caller's own. Raises: NotFound; Internal when it is damaged."""
        head = self._heads.get(id)
        if head is None and self._shelf.damaged(id):
            raise Internal(f"what was kept of {id} is damaged; the server's log says where")
        if head is None or head.owner != caller or self._old(head):
            raise NotFound(f"Response with id '{id[:128]}' not found.")
        return head

    async def parts(self, id: str, head: Head) -> tuple[bytes, bytes, bytes]:
        """Document, items, and the request's body or the events."""
        body = await self._shelf.body(id)
        first, second, third = head.parts
        if len(body) != first + second + third:
            raise Internal(f"what was kept of {id} is damaged")
        return body[:first], body[first : first + second], body[first + second :]

    def check_another(self, caller: str) -> None:
        """Raises: QuotaExceeded, Overloaded when too many are unfinished to begin one more."""
        bounds = self.bounds
        if sum(head.owner == caller for head in self._unfinished.values()) >= bounds.caller_unfinished:
            raise QuotaExceeded(
                f"you have {bounds.caller_unfinished} responses in the background that are not finished, the most "
                "that one caller may have", retry_after_s=_RETRY_S,
            )  # fmt: skip
        if len(self._unfinished) >= bounds.all_unfinished:
            raise Overloaded(
                f"{len(self._unfinished)} responses in the background are not finished", retry_after_s=_RETRY_S
            )

    async def put(self, id: str, head: Head, document: bytes, items: bytes, third: bytes) -> None:
        """Keeps it, in the place of what has its id; the oldest go for it.

        Raises: QuotaExceeded, Overloaded when those that are being made leave no room; never for what takes a place.
        """
        head.parts = (len(document), len(items), len(third))
        head.size = sum(head.parts)
        before = self._heads.get(id)
        if before is None:
            self._check_room(head.owner, head.size)
        else:
            self._drop(id, before)
        self.forget_old()
        self._make_room(head.owner, head.size, 1)
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

    async def put_head(self, id: str, head: Head, body: bytes) -> None:
        """Keeps the head as it is now, with the body that it has."""
        await self._shelf.put(id, msgspec.json.encode(head), body)

    def grow(self, id: str, size: int) -> None:
        """Counts what an unfinished one takes in memory besides. Raises: QuotaExceeded, Overloaded when that is too
        much."""
        head = self._unfinished.get(id)
        if head is None:
            return
        self._check_room(head.owner, size)
        self._make_room(head.owner, size, 0)
        head.size += size
        self._sizes[head.owner] += size
        self._all_bytes += size

    async def remove(self, id: str) -> None:
        """Gone when this returns."""
        self._take(id)
        await self._shelf.drop(id)

    def forget_old(self) -> None:
        """What is too old goes, the oldest first. Called now and then."""
        going = []
        for id, head in self._heads.items():
            if head.status in UNFINISHED:
                continue
            if not self._old(head):
                break
            going.append(id)
        for id in going:
            self._forget(id)

    def _old(self, head: Head) -> bool:
        return self._clock() - head.created > KEEP_S and head.status not in UNFINISHED

    def _insert(self, id: str, head: Head) -> None:
        self._heads[id] = head
        self._own.setdefault(head.owner, {})[id] = head
        self._sizes[head.owner] = self._sizes.get(head.owner, 0) + head.size
        self._all_bytes += head.size
        if head.status in UNFINISHED:
            self._unfinished[id] = head

    def _drop(self, id: str, head: Head) -> None:
        del self._heads[id]
        self._unfinished.pop(id, None)
        own = self._own[head.owner]
        del own[id]
        self._sizes[head.owner] -= head.size
        self._all_bytes -= head.size
        if not own:
            del self._own[head.owner], self._sizes[head.owner]

    def _take(self, id: str) -> None:
        if (head := self._heads.get(id)) is not None:
            self._drop(id, head)

    def _forget(self, id: str) -> None:
        self._take(id)
        self._shelf.discard(id)

    def _check_room(self, owner: str, size: int) -> None:
        """What is being made does not go, so it must leave room."""
        unfinished = list(self._unfinished.values())
        if sum(head.size for head in unfinished if head.owner == owner) + size > self.bounds.caller_bytes:
            raise QuotaExceeded(
                f"your responses in the background that are not finished take the {self.bounds.caller_bytes} bytes "
                "that one caller's may", retry_after_s=_RETRY_S,
            )  # fmt: skip
        if sum(head.size for head in unfinished) + size > self.bounds.all_bytes:
            raise Overloaded(
                "the responses in the background that are not finished take all the room", retry_after_s=_RETRY_S
            )

    def _make_room(self, owner: str, size: int, count: int) -> None:
        """The oldest that have ended go, the caller's own first."""
        bounds = self.bounds

        def too_many() -> bool:
            own = len(self._own.get(owner, {})) + count
            return own > bounds.caller_count or self._sizes.get(owner, 0) + size > bounds.caller_bytes

        if too_many():
            for id, head in list(self._own.get(owner, {}).items()):
                if not too_many():
                    break
                if head.status not in UNFINISHED:
                    self._forget(id)
        while len(self._heads) + count > bounds.all_count or self._all_bytes + size > bounds.all_bytes:
            first = next((id for id, head in self._heads.items() if head.status not in UNFINISHED), None)
            if first is None:
                return
            self._forget(first)
