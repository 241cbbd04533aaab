"""Where the streams of a servable that pours put their pieces: what came in one turn of the loop is one message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from penstock.runtime.workers import frame
from penstock.runtime.workers.channel import Channel

# Of one message, so that it never needs shared memory, and of one entry in it.
_MOST_BYTES = 12 << 10
_MOST_PIECE_BYTES = 8 << 10
_ENTRY_BYTES = 24  # at most, besides the piece


class Sluice:
    """Collects the pieces of all streams of this worker, and sends them once the callbacks that are due have run."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it costs a system call each time
        self._entries: list[tuple[int, int, bytes]] = []
        self._size = 0

    def put(self, number: int, count: int, piece: bytes) -> None:
        """Takes a piece of stream `number`."""
        if len(piece) > _MOST_PIECE_BYTES:
            at = 0
            while len(piece) - at > _MOST_PIECE_BYTES:
                self._add(number, frame.MORE, piece[at : at + _MOST_PIECE_BYTES])
                at += _MOST_PIECE_BYTES
            piece = piece[at:]
        self._add(number, count, piece)

    def _add(self, number: int, count: int, piece: bytes) -> None:
        if not self._entries:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._flush_if_alive)
        elif self._size + len(piece) > _MOST_BYTES:
            self._flush_if_alive()
        self._entries.append((number, count, piece))
        self._size += len(piece) + _ENTRY_BYTES

    def flush(self) -> None:
        """Sends what was collected; to be called before another message of a stream. Raises: OSError."""
        if self._entries:
            entries, self._entries, self._size = self._entries, [], 0
            self._channel.send(frame.Pieces(entries))

    def _flush_if_alive(self) -> None:
        with contextlib.suppress(OSError):  # the front may be gone by now; the reader sees to that
            self.flush()


class Outlet:
    """`core.servable.Outlet` of one stream."""

    __slots__ = ("_number", "_sent", "_sluice", "_taken", "_window", "on_room")

    def __init__(self, number: int, sluice: Sluice, window: int) -> None:
        self.on_room: Callable[[], None] = _nothing
        self._number = number
        self._sluice = sluice
        self._window = window
        self._sent = self._taken = 0

    def room(self) -> bool:
        """See `core.servable.Outlet`."""
        return self._sent - self._taken < self._window

    def put(self, piece: bytes, count: int) -> None:
        """See `core.servable.Outlet`."""
        self._sent += 1
        self._sluice.put(self._number, count, piece)

    def credit(self, taken: int) -> None:
        """The reader has taken so many pieces."""
        self._taken = max(self._taken, taken)
        self.on_room()

    def close(self) -> None:
        """Nothing more comes."""
        self.on_room = _nothing


def _nothing() -> None:
    return
