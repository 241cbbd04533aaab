"""Answers that a server keeps, so that their callers may ask for them again, go on from them, or not wait for them.

`caller` is whose key it was. Everybody sees only their own: what is another's is not found. What a document and an
event look like is the protocol's business; here they are bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

UNFINISHED: Final = frozenset({"queued", "in_progress"})


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An answer. `document` is the object as its caller reads it, JSON."""

    id: str
    status: str  # queued, in_progress; completed, incomplete, failed, cancelled
    document: bytes
    background: bool = False  # its caller did not wait for it
    streamed: bool = False  # its events are kept, so that reading them may begin anywhere


@dataclass(frozen=True, slots=True)
class EventsPart:
    """Events of an answer that follow those already read; none when none came for a while. `ended`: these are all."""

    events: list[bytes]
    ended: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """An answer that is to be made while nobody waits. `items` is the conversation, a JSON array; `body` the request
    without it."""

    id: str
    document: bytes  # as it is before anything was done
    items: bytes
    body: bytes
    streamed: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a wish since the last one: another document, or one more event of its stream."""

    status: str = ""  # empty: as before
    document: bytes = b""
    event: bytes = b""
    again_s: float | None = None  # nothing was done; it is worth trying again so many seconds later


class AnswersWishes(Protocol):
    """Makes answers while nobody waits: a protocol's part of it."""

    def steps(self, wish: Wish, caller: str, deadline: float) -> AsyncIterator[Step]:
        """The last step has a status that ends it. Closing it frees the model within a token. Raises nothing else
        than what cancels it. Tried again, it begins with the same events."""
        ...

    def cut(self, document: bytes, status: str, message: str, events: int) -> Step:
        """How an answer ends that was not finished. `events` is how many there were; of a `document` that was lost
        only `id` and `created_at` are there."""
        ...


class Responses(Protocol):
    """What a server keeps of answers. Every method that takes an id raises NotFound for what this caller does not have;
    all raise Overloaded or Internal when the folder that they are in cannot be written or read."""

    async def keep(self, caller: str, id: str, status: str, document: bytes, items: bytes) -> bool:
        """Whether it is kept: not when it is larger than one may be. The oldest of too many go."""
        ...

    async def find(self, caller: str, id: str) -> StoredResponse: ...

    async def items(self, caller: str, id: str) -> bytes:
        """The conversation before the answer, a JSON array."""
        ...

    async def remove(self, caller: str, id: str) -> None:
        """Ends it too, when it is under way."""
        ...

    async def begin(self, caller: str, wish: Wish) -> None:
        """Begins the work. Raises: TooLarge; QuotaExceeded, Overloaded when too many are unfinished; NotReady at a
        stop."""
        ...

    async def cancel(self, caller: str, id: str) -> StoredResponse:
        """Ends the work; what has ended stays as it is. Raises: InvalidInput when its caller waited for it."""
        ...

    async def events(self, caller: str, id: str, after: int) -> EventsPart:
        """The events from number `after` on; waits a while for the next one. Raises: InvalidInput when they are not
        kept."""
        ...
