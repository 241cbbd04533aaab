"""What a graph's step answers may be large."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from penstock.core.errors import Internal
from penstock.runtime.graphs import remote
from penstock.runtime.graphs.journey import Journey
from penstock.runtime.graphs.remote import Remote


async def asked(size_bytes: int) -> int:
    """The size of the answer of a server that sends as much."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=bytes(size_bytes))

    app = web.Application()
    app.router.add_post("/", answer)
    runner, calls = web.AppRunner(app), Remote()
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        reply = await calls.post(url, b"", Journey(time.monotonic() + 60, {}), {})
        return len(reply.body)
    finally:
        await calls.close()
        await runner.cleanup()


def test_a_large_answer_takes_time_in_proportion() -> None:
    began = time.process_time()
    assert asyncio.run(asked(96 << 20)) == 96 << 20
    assert time.process_time() - began < 3.0, "copied anew with every part, it takes 9 s"


def test_an_answer_that_is_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LARGEST_BYTES", 1 << 20)
    assert asyncio.run(asked(1 << 20)) == 1 << 20
    with pytest.raises(Internal, match="more than 1048576 bytes"):
        asyncio.run(asked((1 << 20) + 1))
