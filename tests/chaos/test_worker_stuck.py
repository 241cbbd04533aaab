"""P2b and F3: workers that do not move, in every way at the same time. Each is found in time, its stacks are saved, it is
replaced, and other models do not notice. One that holds the interpreter for less than the limit is left alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import server_processes as processes

import penstock
from penstock import ledger
from penstock.core.errors import PenstockError

pytestmark = pytest.mark.alone

# Each hangs for a number below 0, and holds the interpreter for half a second for 0.
MODELS = """
import asyncio, ctypes, re, threading, time
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}}
holding = ctypes.PyDLL(None)  # calls keep the interpreter lock


def hang(how):
    while how == "loop":
        pass
    while how == "holds":
        holding.sleep(1)
    if how == "regex":
        re.match("(a+)+$", "a" * 60 + "b")
    if how == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    if how == "blocks":
        time.sleep(600)


def of(how, **options):
    @penstock.model(**PLAIN, batch=False, **options)
    def model(x):
        if x[0] < 0:
            hang(how)
        if x[0] == 0:
            holding.usleep(500_000)
        return {"y": x}
    return model


loop, holds, regex, deadlock, stopped = map(of, ("loop", "holds", "regex", "deadlock", "stopped"))


@penstock.model(**PLAIN, concurrency=4)
async def blocks(x):
    if x[0] < 0:
        hang("blocks")
    return {"y": x}


@penstock.model(**PLAIN, batch=False)
def stream(x):
    yield {"y": x}
    if x[0] < 0:
        hang("loop")


@penstock.model(**PLAIN)
def other(x):
    return {"y": 3 * x}
"""
HANG_S, DEADLINE_S, HEARTBEAT_S = 1.0, 0.3, 0.25
# From the request on: a process that is stopped or that lets no other thread run falls silent, any other is overdue.
FOUND_S = {
    "stopped": 2 * HEARTBEAT_S, "holds": HANG_S, "regex": HANG_S, "loop": DEADLINE_S + HANG_S,
    "deadlock": DEADLINE_S + HANG_S, "blocks": DEADLINE_S + HANG_S, "stream": DEADLINE_S + HANG_S,
}  # fmt: skip
FRAMES = {"holds": "in hang", "regex": "in match", "loop": "in hang", "deadlock": "in hang", "blocks": "in hang", "stream": "in hang", "stopped": "in recvmsg|in receive"}  # fmt: skip


@pytest.mark.parametrize(
    "rounds", [1, pytest.param(5, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])], ids=["once", "again and again"]
)
async def test_stuck_workers_are_found_saved_and_replaced_beside_an_undisturbed_model(
    server: Callable[..., Any], tmp_path: Path, figure: Callable[..., None], rounds: int
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    table: dict[str, object] = {"workers": 1, "hang_s": HANG_S, "warm_up": False, "timeout_s": DEADLINE_S}
    running = server({name: {**table, "path": f"{tmp_path}/models.py:{name}"} for name in (*FOUND_S, "other")})
    plan = ledger.Plan(phases=(ledger.Phase(3.5 * rounds, 60.0),), slack_s=0.3)
    beside = asyncio.create_task(ledger.run(ledger.Target(running.http, "other"), plan))
    late: dict[str, list[float]] = {name: [] for name in FOUND_S}
    async with penstock.AsyncClient(running.http, retries=0, timeout_s=30) as client:
        for _ in range(rounds):
            pids = {name: processes.workers(running.pid, name)[0] for name in FOUND_S}
            begun = dict(
                zip(pids, await asyncio.gather(*(stick(client, name, pids[name]) for name in pids)), strict=True)
            )
            answers = [client.infer(name, {"x": np.ones(1)}) for name in pids if name != "stream"]
            assert all(answer["y"] == 1 for answer in await asyncio.gather(*answers)), "the next one is answered"
            events = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
            for name, pid in pids.items():
                assert pid not in processes.workers(running.pid), f"{name} was not replaced"
                mine = [event for event in events if event.get("pid") == pid]
                found = next(event for event in mine if event["event"] == "worker_stuck")
                assert found["threads"], "what the kernel says of its threads"
                stacks = "\n".join(str(event["event"]) for event in mine if event.get("stream") == "stderr")
                assert any(frame in stacks for frame in FRAMES[name].split("|")), f"{name}: no stack in\n{stacks}"
                late[name].append(when(found) - begun[name] - FOUND_S[name])
    report = await beside
    assert [str(one) for one in report.violations] == []
    assert report.summary().outcomes == {"ok": report.summary().sent}
    worst = max(max(values) for values in late.values())
    assert worst < 2 * HEARTBEAT_S + 2.0, late
    assert min(min(values) for values in late.values()) > -2 * HEARTBEAT_S, f"killed before its time: {late}"
    figure("P2b", "a stuck worker is found after its limit, at most", worst, "s", goal="≤ 0.5 s (2 heartbeats)")
    figure("P2b", "a stopped worker is found after, at most", max(late["stopped"]) + FOUND_S["stopped"], "s", goal="≤ 0.75 s")  # fmt: skip


def when(event: dict[str, Any]) -> float:
    """Seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).timestamp()


async def stick(client: penstock.AsyncClient, name: str, pid: int) -> float:
    """Makes the one worker of a model hang; when that began, in seconds since the epoch."""
    if name == "stopped":
        os.kill(pid, signal.SIGSTOP)
        return time.time()
    began, parameters = time.time(), {"timeout": int(DEADLINE_S * 1e6)}
    with pytest.raises(PenstockError) as told:
        if name == "stream":
            async for _ in client.stream(name, {"x": -np.ones(1)}, parameters=parameters):
                pass
        else:
            await client.infer(name, {"x": -np.ones(1)}, parameters=parameters)
    assert told.value.code == "DEADLINE_EXCEEDED", told.value
    assert time.time() - began < DEADLINE_S + 1.0
    return began


@pytest.mark.chaos
async def test_worker_that_holds_the_interpreter_for_less_than_the_limit_is_left_alone(
    server: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    running = server({"m": {"path": f"{tmp_path}/models.py:holds", "workers": 1, "warm_up": False, "hang_s": 2}})
    before = processes.workers(running.pid, "m")
    async with penstock.AsyncClient(running.http, retries=0) as client:
        for _ in range(3):
            assert (await client.infer("m", {"x": np.zeros(1)}))["y"] == 0
    assert processes.workers(running.pid, "m") == before
    assert "worker_stuck" not in running.log.read_text()


async def test_request_for_a_stopped_worker_goes_to_the_other_one(server: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    running = server({"m": {"path": f"{tmp_path}/models.py:other", "workers": 2}})
    victim, _ = processes.until(
        lambda: len(found := processes.workers(running.pid, "m")) == 2 and found, 10, "two workers"
    )
    os.kill(victim, signal.SIGSTOP)
    async with penstock.AsyncClient(running.http, retries=0) as client:
        began = time.monotonic()
        while victim in processes.workers(running.pid, "m"):
            assert (await client.infer("m", {"x": np.ones(1)}))["y"] == 3, "what the stopped one had is run elsewhere"
            assert time.monotonic() - began < 10
