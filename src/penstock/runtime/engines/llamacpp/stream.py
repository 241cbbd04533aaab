"""Reads one stream of llama.cpp's server: HTTP/1.1 over its Unix socket, a message for each token of each sequence.

This runs for every token, so it is no general client: one request to a connection, whose end is the request's end.
Source: RFC 9112, section 7.1 (chunks); the HTML standard, section 9.2 (server-sent events).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from penstock.core.errors import ServableError
from penstock.runtime.engines.llamacpp import wire

_LONGEST_HEAD = 64 * 1024


async def stream(path: str, key: str, body: bytes, moved: Callable[[], None]) -> AsyncGenerator[list[wire.Part], None]:
    """The messages of a completion: those that came together, together. `moved` is called with everything that comes.

    Closing it closes the connection, at which llama.cpp leaves off. Raises: what a refusal is to a caller.
    """
    answer = _Answer(moved)
    transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: answer, path)
    try:
        head = (
            f"POST /completion HTTP/1.1\r\nHost: llama\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        transport.write(head.encode() + body)
        while parts := await answer.take():
            yield parts
    finally:
        transport.abort()


class _Answer(asyncio.Protocol):
    """What comes back, as far as it has been read."""

    def __init__(self, moved: Callable[[], None]) -> None:
        self._moved = moved
        self._status = 0  # 0 until the head has come
        self._chunked = False
        self._raw = b""  # not looked at yet
        self._left = 0  # of the chunk, its end of line included
        self._line = b""  # of the body, not ended yet
        self._parts: list[wire.Part] = []
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> list[wire.Part]:
        """All messages that were not taken yet, at least one; none at the end. Raises: see `stream`."""
        while not self._parts and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self._parts:
            if self._error is not None:
                raise self._error
            if self._status != 200:
                raise wire.read_fault(self._line, self._status or 500)
        parts, self._parts = self._parts, []
        return parts

    def data_received(self, data: bytes) -> None:
        self._moved()
        if self._ended:  # nothing after the end, or what cannot be read, is looked at
            return
        self._raw += data
        try:
            if self._status or self._head():
                self._body()
        except (ValueError, IndexError) as error:
            self._error = ServableError(f"llama.cpp's answer cannot be read: {error}")
            self._end()
        if self._parts:
            self._wake()

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    def _head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            if len(self._raw) > _LONGEST_HEAD:
                raise ValueError("no end of its head")
            return False
        self._raw = rest
        self._status = int(head.split(b" ", 2)[1])
        self._chunked = b"transfer-encoding: chunked" in head.lower()
        return True

    def _body(self) -> None:
        if not self._chunked:
            self._read(self._raw)
            self._raw = b""
            return
        raw, at = self._raw, 0
        while at < len(raw):
            if not self._left:
                end = raw.find(b"\r\n", at)
                if end < 0:
                    break
                size = int(raw[at:end].partition(b";")[0], 16)
                if not size:
                    self._end()
                    break
                self._left, at = size + 2, end + 2
            piece = raw[at : at + self._left]
            at += len(piece)
            self._read(piece[: max(self._left - 2, 0)])  # the chunk's own end of line is no part of the body
            self._left -= len(piece)
        self._raw = raw[at:]

    def _read(self, piece: bytes) -> None:
        if self._status != 200:
            self._line += piece
            return
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._parts.append(wire.decode_part(line[6:]))
            elif line.startswith(b"error: {"):  # some of its releases say so what others say as data
                self._parts.append(wire.Part(error=wire.decode_fault(line[7:])))

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
