"""Streams of a language model while its worker is killed, its server stops, callers leave or do not read."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import server_processes as processes
from running_server import RunningServer, ServerFactory
from watched_processes import held_by

pytestmark = pytest.mark.timeout(120)
SLOW = {"delay_s": 0.01, "context_tokens": 1 << 20}


def asks(text: str, **more: object) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": f"say:{text}"}], "max_tokens": 50, **more}


def endless(tokens: int) -> dict[str, Any]:
    return asks("x" * 8, stream=True, max_tokens=tokens, ignore_eos=True)


class Stream:
    """What came of one stream."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.broke_off = False

    @property
    def tokens(self) -> int:
        return sum('"content":"x' in event for event in self.events)

    @property
    def failed(self) -> bool:
        """It ended with an error event, and does not claim to be whole."""
        return "[DONE]" not in self.events and bool(self.events) and "error" in json.loads(self.events[-1])

    @property
    def whole(self) -> bool:
        return self.events[-1:] == ["[DONE]"] and not any('"error"' in event for event in self.events)


async def read(client: httpx.AsyncClient, body: dict[str, Any], found: Stream) -> None:
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    found.events.append(line[6:])
    except httpx.TransportError:
        found.broke_off = True


async def said(client: httpx.AsyncClient, text: str = "hello") -> str:
    answer = await client.post("/v1/chat/completions", json=asks(text))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def becomes(claim: Any, within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)


def at(running: RunningServer, **more: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.http, timeout=30, limits=httpx.Limits(max_connections=200), **more)


@pytest.fixture
async def gathered() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that do not outlive the test."""
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_streams_whose_engine_is_killed_end_with_an_error(
    server: ServerFactory, llmecho: Path, gathered: list[asyncio.Task[None]]
) -> None:
    running = server({"echo": {"path": str(llmecho), "options": SLOW}})
    streams = [Stream() for _ in range(8)]
    async with at(running) as client:
        gathered += [asyncio.create_task(read(client, endless(100_000), one)) for one in streams]
        await becomes(lambda: all(one.tokens > 3 for one in streams), 20, "all stream")
        processes.kill(processes.workers(running.pid, "echo"), signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*gathered), 20)
        assert all(one.failed and not one.broke_off for one in streams), [one.events[-1:] for one in streams]
        assert await said(client) == "hello"


async def test_a_server_that_stops_finishes_its_streams_within_its_grace_and_tells_the_others(
    server: ServerFactory, llmecho: Path, gathered: list[asyncio.Task[None]]
) -> None:
    running = server({"echo": {"path": str(llmecho), "options": SLOW}}, grace_s=3.0)
    short, long = [Stream() for _ in range(4)], [Stream() for _ in range(4)]
    async with at(running) as client:
        gathered += [asyncio.create_task(read(client, endless(80), one)) for one in short]
        gathered += [asyncio.create_task(read(client, endless(100_000), one)) for one in long]
        await becomes(lambda: all(one.tokens > 3 for one in short + long), 20, "all stream")
        running.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*gathered), 30)
    assert all(one.whole and one.tokens == 80 for one in short), [one.events[-1:] for one in short]
    assert all(one.failed and not one.broke_off for one in long), [one.events[-1:] for one in long]


async def test_fronts_answer_alike_and_share_what_a_key_may_use(
    server: ServerFactory, llmecho: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[alice]\nkey = "a-key-of-alice"\nrequests_per_minute = 6\n\n[bob]\nkey = "a-key-of-bob"\n')
    running = server({"echo": {"path": str(llmecho)}}, fronts=2, api_key_file=str(keys))
    bob, alice = ({"Authorization": f"Bearer a-key-of-{name}", "Connection": "close"} for name in ("bob", "alice"))
    async with at(running, headers=bob) as client:
        assert {await said(client, "the same") for _ in range(16)} == {"the same"}  # each on a connection of its own
    async with at(running, headers=alice) as client:
        answers = [await client.post("/v1/chat/completions", json=asks("hi")) for _ in range(16)]
    refused = [one for one in answers if one.status_code != 200]
    assert 9 <= len(refused) <= 10  # a seventh may have come back meanwhile
    for one in refused:
        assert one.status_code == 429 and 1 <= int(one.headers["retry-after"]) <= 60
        error = one.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == "rate_limit_exceeded"


async def test_a_reader_that_takes_nothing_fills_no_front_and_holds_up_nobody(
    server: ServerFactory, llmecho: Path
) -> None:
    """An engine goes on to its end: what waits for the reader lies in the worker, at most `max_tokens` of it."""
    running = server({"echo": {"path": str(llmecho), "options": {"context_tokens": 1 << 20}}})
    address = urlsplit(running.http)
    body = json.dumps(endless(300_000)).encode()  # 50 MB of events
    async with at(running) as client:
        assert await said(client) == "hello"
        before = held_by(running.pid)[0].private_bytes
        with socket.create_connection((address.hostname, address.port)) as slow:  # type: ignore[arg-type]
            slow.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
            until, most_s, count = time.monotonic() + 1.5, 0.0, 0
            while time.monotonic() < until:
                began = time.monotonic()
                assert await said(client, f"{count}") == f"{count}"
                most_s, count = max(most_s, time.monotonic() - began), count + 1
            grown = held_by(running.pid)[0].private_bytes - before
        assert grown < 15 << 20, f"{grown >> 20} MiB more"
        assert count > 5 and most_s < 1.5


async def test_callers_who_leave_at_random_leave_nothing_running(server: ServerFactory, llmecho: Path) -> None:
    running = server({"echo": {"path": str(llmecho), "options": {**SLOW, "max_running": 4}}})
    dice = random.Random(7)

    async def leave(client: httpx.AsyncClient) -> None:
        try:
            async with asyncio.timeout(dice.uniform(0.0, 0.5)):
                await read(client, endless(100_000), Stream())
        except TimeoutError:
            pass

    async def at_work(client: httpx.AsyncClient) -> list[float]:
        text = (await client.get("/metrics")).text
        return [float(one) for one in re.findall(r"^penstock_llm_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)]

    async with at(running) as client:
        await asyncio.gather(*(leave(client) for _ in range(60)))
        deadline = time.monotonic() + 20
        while await at_work(client) != [0.0, 0.0]:
            assert time.monotonic() < deadline, await at_work(client)
            await asyncio.sleep(0.02)
        assert await said(client) == "hello"
