"""Quotas, priorities, deadlines, and the ends of clients, workers and fronts, under streams of a language model."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import server_processes as processes
from language_streams import SURFACES, Read, becomes, read
from running_server import RunningServer, ServerFactory
from watched_processes import family

pytestmark = [pytest.mark.timeout(120), pytest.mark.alone]
SLOW = {"delay_s": 0.02, "context_tokens": 1 << 16}
BOTH = pytest.mark.parametrize("fronts", [pytest.param(1, marks=pytest.mark.chaos), 2])
LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=0)  # each on a connection, so on any front


def at(running: RunningServer, key: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=running.http, timeout=40, limits=LIMITS, headers=headers)


def chat(text: str, **more: object) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": f"say:{text}"}], **more}


async def at_work(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    return sum(float(one) for one in re.findall(r"^penstock_llm_(?:running|waiting)\{.*\} (\S+)$", text, re.M))


async def idle(client: httpx.AsyncClient, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while found := await at_work(client):
        assert time.monotonic() < deadline, f"{found} still hold a slot"
        await asyncio.sleep(0.02)


@BOTH
async def test_tokens_of_a_key_are_refused_before_a_stream_begins_and_never_in_its_middle(
    server: ServerFactory, llmecho: Path, tmp_path: Path, fronts: int
) -> None:
    """A request reserves what it may take, so that one that began is never cut by its quota."""
    keys = tmp_path / "keys.toml"
    keys.write_text('[alice]\nkey = "a-key-of-alice"\ntokens_per_minute = 3000\n\n[bob]\nkey = "a-key-of-bob"\n')
    running = server({"echo": {"path": str(llmecho), "options": SLOW}}, fronts=fronts, api_key_file=str(keys))
    async with at(running, "a-key-of-alice") as alice, at(running, "a-key-of-bob") as bob:
        tasks = [
            asyncio.create_task(alice.post("/v1/chat/completions", json=chat("x" * 100, stream=True, max_tokens=110)))
            for _ in range(20)
        ]  # each reserves some 220 tokens
        others = [asyncio.create_task(bob.post("/v1/chat/completions", json=chat("y"))) for _ in range(8)]
        answers = await asyncio.gather(*tasks)
        assert {(await one).status_code for one in others} == {200}
    served = [one for one in answers if one.status_code == 200]
    refused = [one for one in answers if one.status_code != 200]
    assert 10 <= len(served) <= 15 and len(served) + len(refused) == 20
    for one in served:
        assert one.text.rstrip().endswith("data: [DONE]") and '"error"' not in one.text
    for one in refused:
        assert one.status_code == 429 and 1 <= int(one.headers["retry-after"]) <= 60
        assert int(one.headers["retry-after-ms"]) >= 1
        error = one.json()["error"]
        assert error["code"] == "rate_limit_exceeded" and error["type"] == "rate_limit_error"
        assert "tokens a minute" in error["message"]


@BOTH
async def test_streams_whose_deadline_passes_end_with_an_error_event(
    server: ServerFactory, llmecho: Path, fronts: int
) -> None:
    running = server({"echo": {"path": str(llmecho), "options": SLOW}}, fronts=fronts)
    async with at(running) as client:
        began = time.monotonic()
        headers = {"Penstock-Timeout-Ms": "1500"}
        found = await asyncio.gather(
            *(read(client, surface, Read(surface), headers=headers) for surface in SURFACES for _ in range(2))
        )
        assert 1.4 < time.monotonic() - began < 6
        for one in found:
            assert one.status == 200 and not one.broke_off and not one.says_whole, (one.surface, one.events[-1:])
            assert "deadline" in str(one.error), (one.surface, one.events[-1:])
        await idle(client)


async def test_an_urgent_request_passes_those_that_wait_and_no_key_is_kept_out(
    server: ServerFactory, llmecho: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("".join(f'[{name}]\nkey = "a-key-of-{name}"\n\n' for name in ("many", "few", "boss")))
    options = {**SLOW, "delay_s": 0.01, "max_running": 2}
    running = server({"echo": {"path": str(llmecho), "options": options}}, api_key_file=str(keys), fronts=2)
    order: list[str] = []
    async with (
        at(running, "a-key-of-many") as many,
        at(running, "a-key-of-few") as few,
        at(running, "a-key-of-boss") as boss,
    ):

        async def one(client: httpx.AsyncClient, name: str, **more: object) -> None:
            answer = await client.post("/v1/chat/completions", json=chat("x" * 20, max_tokens=21, **more))
            assert answer.status_code == 200, answer.text
            order.append(name)

        tasks = [asyncio.create_task(one(many, "many")) for _ in range(30)]
        deadline = time.monotonic() + 20
        while await at_work(many) < 20 and time.monotonic() < deadline:
            pass
        tasks += [asyncio.create_task(one(few, "few")) for _ in range(4)]
        tasks.append(asyncio.create_task(one(boss, "boss", priority=1)))
        await asyncio.gather(*tasks)
    after = order[next(at for at, name in enumerate(order) if name != "many") :]
    assert after.index("boss") <= 4, order
    assert "".join(name[0] for name in after if name != "boss").rindex("f") < 14, order  # by turns


@BOTH
async def test_clients_that_leave_free_their_slots_whatever_was_going_on(
    server: ServerFactory, llmecho: Path, fronts: int
) -> None:
    """Before the first token, while they wait, in the middle of a stream, of several choices, of a whole answer."""
    options = {**SLOW, "delay_s": 0.3, "max_running": 2}
    running = server({"echo": {"path": str(llmecho), "options": options}}, fronts=fronts)
    path = "/v1/chat/completions"
    phases: list[tuple[dict[str, Any], float]] = [
        (chat("x" * 99, stream=True), 2),  # leaves before or at its first token
        (chat("x" * 99), 2),
        (chat("x" * 99, n=4, stream=True), 4),  # two run, two wait
        (chat("x" * 99, n=4), 4),
    ]
    async with at(running) as client:
        for body, count in phases:
            for events in (0, 3) if body.get("stream") else (0,):
                tasks = [
                    asyncio.create_task(_leave(running, path, body, events)) for _ in range(2 if count == 2 else 1)
                ]
                deadline = time.monotonic() + 20
                while await at_work(client) < count and not all(task.done() for task in tasks):
                    assert time.monotonic() < deadline
                if events:
                    await asyncio.wait_for(asyncio.gather(*tasks), 20)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await idle(client, 3.0)
        answer = await client.post(path, json=chat("z"))
        assert answer.json()["choices"][0]["message"]["content"] == "z"


async def _leave(running: RunningServer, path: str, body: dict[str, Any], events: int) -> None:
    """Leaves after so many events, or when it is cancelled."""
    async with at(running) as client, client.stream("POST", path, json=body) as answer:
        count = 0
        async for line in answer.aiter_lines():
            count += line.startswith("data: ")
            if events and count >= events:
                return


@BOTH
async def test_streams_of_a_stopped_worker_end_at_their_deadline_with_an_error(
    server: ServerFactory, llmecho: Path, fronts: int
) -> None:
    running = server({"echo": {"path": str(llmecho), "options": SLOW, "hang_s": 2.0}}, fronts=fronts)
    async with at(running) as client:
        found = [Read(surface) for surface in SURFACES]
        tasks = [
            asyncio.create_task(read(client, one.surface, one, headers={"Penstock-Timeout-Ms": "3000"}))
            for one in found
        ]
        await becomes(lambda: all(len(one.events) > 5 for one in found), 20, "they stream")
        stopped = processes.workers(running.pid, "echo")
        processes.kill(stopped, signal.SIGSTOP)
        try:
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
        finally:
            processes.kill([pid for pid in stopped if processes.alive([pid])], signal.SIGCONT)
        for one in found:
            assert one.error and not one.broke_off and not one.says_whole, (one.surface, one.events[-1:])
        await idle(client)
        answer = await client.post("/v1/chat/completions", json=chat("z"))
        assert answer.json()["choices"][0]["message"]["content"] == "z"


async def test_a_front_that_is_killed_leaves_no_slot_taken(server: ServerFactory, llmecho: Path) -> None:
    options = {**SLOW, "max_running": 8}
    running = server({"echo": {"path": str(llmecho), "options": options}}, fronts=2)
    before = family(running.pid)
    async with at(running) as client:
        found = [Read("chat") for _ in range(16)]
        tasks = [asyncio.create_task(read(client, "chat", one)) for one in found]
        await becomes(lambda: sum(len(one.events) > 3 for one in found) >= 8, 20, "half of them stream")
        fronts = [pid for pid in before if "penstock.runtime.fronts.main" in _command(pid)]
        assert len(fronts) == 1
        processes.kill(fronts, signal.SIGKILL)
        await becomes(lambda: any(one.broke_off for one in found), 10, "its clients hear of it")
        lost = [one for one in found if one.broke_off]
        assert not any(one.says_whole for one in lost)
        deadline = time.monotonic() + 10
        while await _answered(client) and (left := await at_work(client)) > len(found) - len(lost):
            assert time.monotonic() < deadline, f"{left} of {len(found) - len(lost)} hold a slot"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await idle(client)


async def _answered(client: httpx.AsyncClient) -> bool:
    return (await client.get("/v2/health/live")).status_code == 200


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
