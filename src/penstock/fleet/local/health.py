"""Asks a replica whether it is ready, over HTTP as anybody would."""

from __future__ import annotations

import asyncio
import contextlib

_MOST_BYTES = 16 << 10


async def ready(address: str, timeout_s: float) -> bool | None:
    """Whether a replica says that it is ready; None when it says nothing in time."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, IndexError, asyncio.IncompleteReadError):
        async with asyncio.timeout(timeout_s):
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=_MOST_BYTES)
            try:
                writer.write(
                    f"GET /v2/health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("ascii")
                )
                status = await reader.readline()
                return int(status.split()[1]) == 200
            finally:
                writer.transport.abort()  # the rest of the answer is nobody's concern
    return None
