"""Where files, batches and responses lie: a head and a body for each id, in memory or in a folder."""

from __future__ import annotations

from typing import Protocol


class Shelf(Protocol):
    """Things of one kind. Heads are small and JSON; bodies are bytes of any size.

    All methods raise Overloaded when there is no room, and Internal when what is there cannot be read or written.
    """

    async def put(self, id: str, head: bytes, body: bytes) -> None:
        """Kept when this returns, whole or not at all; in the place of what had the id."""
        ...

    async def body(self, id: str) -> bytes: ...

    async def drop(self, id: str) -> None:
        """Gone when this returns; what is not there is gone already."""
        ...

    def discard(self, id: str) -> None:
        """Gone soon."""
        ...

    async def heads(self) -> dict[str, bytes]:
        """What is there, by id, the oldest first."""
        ...

    def damaged(self, id: str) -> bool:
        """Whether something of that id was there at the start and cannot be read."""
        ...


class Journal(Protocol):
    """Lines that are added one by one, for each id."""

    async def append(self, id: str, line: bytes) -> None:
        """Kept when this returns. The line holds no line end. Raises: as `Shelf`."""
        ...

    async def lines(self, id: str) -> tuple[list[bytes], str]:
        """All, in their order; one that was not whole when the process ended is not there. With them what is wrong, ""
        if nothing: then they are those before that place. Raises: as `Shelf`."""
        ...

    def discard(self, id: str) -> None: ...


class MemoryShelf:
    """A shelf that is empty at every start."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    async def put(self, id: str, head: bytes, body: bytes) -> None:
        """See `Shelf`, also of the methods below."""
        self._bodies[id] = body

    async def body(self, id: str) -> bytes:
        return self._bodies[id]

    async def drop(self, id: str) -> None:
        self.discard(id)

    def discard(self, id: str) -> None:
        self._bodies.pop(id, None)

    async def heads(self) -> dict[str, bytes]:
        return {}

    def damaged(self, id: str) -> bool:
        return False


class NoJournal:
    """A journal of what is in memory anyway."""

    async def append(self, id: str, line: bytes) -> None:
        """See `Journal`, also of the methods below."""

    async def lines(self, id: str) -> tuple[list[bytes], str]:
        return [], ""

    def discard(self, id: str) -> None:
        return
