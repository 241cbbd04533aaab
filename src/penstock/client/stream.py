"""One connection of an asyncio program."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

from penstock.client.connection import silent
from penstock.client.http1 import ANY, MAX_HEAD_BYTES, Buffer, ConnectionEnded, Need
from penstock.core.errors import Internal

# Bytes received that nobody has asked for yet, until the server is made to wait.
_UNREAD_BYTES = 1 << 20


class Stream(asyncio.Protocol):
    """A connection whose bytes are read by need; see `http1`. For one task at a time, on its loop's thread."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._need: Need = 0
        self._searched = 0  # bytes of the buffer that surely hold no end mark
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused = False
        self._ended = False

    # --- what asyncio calls; nothing may be raised here ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are like one, and not subclasses

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._waiter is not None and self._size() is not None:
            self._wake()
        elif self._waiter is None and len(self._buffer) > _UNREAD_BYTES and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # --- what the client calls ---

    async def send(self, buffers: Iterable[Buffer]) -> None:
        """Sends all of it, as fast as the server takes it."""
        for buffer in buffers:
            assert self._transport is not None
            if self._ended or self._transport.is_closing():
                return  # its answer, if there is one, says why
            self._transport.write(buffer)
            if self._drained is not None:
                await self._drained

    async def read(self, need: Need) -> bytes | bytearray:
        """What a reading generator of `http1` needs. Raises: ConnectionEnded, Internal (a head without an end)."""
        self._need, self._searched = need, 0
        while (size := self._size()) is None:
            if isinstance(need, bytes) and len(self._buffer) > MAX_HEAD_BYTES:
                raise Internal(f"the server's answer has a head of more than {MAX_HEAD_BYTES} bytes")
            if self._ended:
                if need == ANY:
                    return b""
                raise ConnectionEnded
            self._resume()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if size == len(self._buffer):
            data, self._buffer = self._buffer, bytearray()
            return data
        data = self._buffer[:size]
        del self._buffer[:size]
        return data

    def usable(self, now: float, idle_s: float) -> bool:
        """Whether it can carry another request: not idle for long, not closed by the server, nothing left over."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._ended or self._buffer or now - self.idle_since > idle_s:
            return False
        # The loop may not have come round to tell of an end that the system knows already.
        return silent(transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        """Closes it at once; the server stops working on what was not answered."""
        if self._transport is not None:
            self._transport.abort()

    def _size(self) -> int | None:
        """How many bytes satisfy the need, or None when they are not there yet."""
        need, have = self._need, len(self._buffer)
        if isinstance(need, bytes):
            at = self._buffer.find(need, self._searched)
            if at >= 0:
                return at + len(need)
            self._searched = max(0, have - len(need) + 1)
            return None
        if need == ANY:
            return have or None
        return need if have >= need else None

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self._ended = True
        self._wake()
        self.resume_writing()
