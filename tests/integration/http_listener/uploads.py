"""The head of an upload, and whether the listener still serves after it."""

from __future__ import annotations

from http_harness import Serving, infer

HEAD = b"POST /upload HTTP/1.1\r\nHost: a\r\n"


async def still_serves(it: Serving) -> None:
    client = await it.connect()
    assert (await client.ask(infer([1]))).status == 200
    await client.close()
