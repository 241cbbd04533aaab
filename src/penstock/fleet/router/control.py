"""Calls of the controller over its Unix socket. Each call has a connection of its own: there is about one a second."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Final

from penstock.core.errors import NotReady, PenstockError
from penstock.fleet.router.answer_head import AnswerReader
from penstock.fleet.router.chunked import Chunked

SOCKET: Final = "fleet.sock"
_MOST_BYTES = 256 << 20  # of an answer: a table of 100,000 endpoints is some 50 MB
_TARGET: Final = re.compile(r"/[!-~]*")


class Control:
    """The controller of a state's folder."""

    def __init__(self, state: Path) -> None:
        self._socket = state / SOCKET
        self._heads = AnswerReader()

    async def call(self, method: str, target: str, body: bytes = b"", *, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            NotReady: there is no controller, or it did not answer in time.
        """
        assert _TARGET.fullmatch(target)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(method, target, body)
        except (OSError, TimeoutError, EOFError, PenstockError) as error:
            raise NotReady(f"the controller does not answer: {error}", retry_after_s=1.0) from None

    async def _call(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            writer.write(
                f"{method} {target} HTTP/1.1\r\nHost: controller\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = self._heads.read(await reader.readuntil(b"\r\n\r\n"))
            if head.bodiless:
                return head.status, b""
            if head.length is not None:
                if head.length > _MOST_BYTES:
                    raise NotReady("its answer is too long")
                return head.status, await reader.readexactly(head.length)
            chunked = Chunked() if head.chunked else None
            found = bytearray()
            while data := await reader.read(256 << 10):
                if chunked is None:
                    found += data
                else:
                    for piece in chunked.feed(data)[0]:
                        found += piece
                if len(found) > _MOST_BYTES:
                    raise NotReady("its answer is too long")
                if chunked is not None and chunked.done:
                    break
            if chunked is not None and not chunked.done:
                raise NotReady("its answer ended too early")
            return head.status, bytes(found)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
