"""Worker processes that load, fail to, and close, and leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from started_workers import Starter, X, one, resources_held, spec, submit, until

from penstock.core.errors import (
    LoadError,
    WorkerLost,
)
from penstock.core.servable import LoadContext
from penstock.runtime.workers import Batch
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.pool import Pool
from penstock.runtime.workers.process import WorkerProcess

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("load_error", "^no such layer$"),
        ("load_raise", "KeyError: 'weights'"),
        ("load_exit", "SystemExit: 5"),
        ("load_death", "SIGSEGV(.|\n)*about to go"),
    ],
)
async def test_a_failed_load_says_why_and_leaves_nothing(kind: str, text: str) -> None:
    before = resources_held()
    with pytest.raises(LoadError, match=text):
        await WorkerProcess.start(spec(kind))
    assert resources_held() == before


async def test_a_load_that_hangs_is_killed_when_its_time_is_up() -> None:
    began = time.monotonic()
    with pytest.raises(LoadError, match=r"did not load within 0\.6 s"):
        await WorkerProcess.start(spec("load_hang"), load_timeout_s=0.6)
    assert time.monotonic() - began < 2.0


async def test_cancelling_a_start_leaves_nothing() -> None:
    before = resources_held()
    task = asyncio.create_task(WorkerProcess.start(spec("load_hang")))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert resources_held() == before


async def test_unknown_plugs_and_interpreters_are_load_errors() -> None:
    with pytest.raises(LoadError, match="no plug 'nonsense'"):
        await WorkerProcess.start(LoadSpec("nonsense", ".", LoadContext("m", 1)))
    with pytest.raises(LoadError, match="cannot start a worker process"):
        await WorkerProcess.start(spec("double"), python="/no/such/python")


async def test_thread_counts_reach_the_environment(start: Starter) -> None:
    worker = await start("obedient", threads=3)
    assert (await submit(worker, one(X, do="threads"))).outputs["y"][0, 0] == 3


async def test_secrets_of_the_server_do_not_reach_user_code(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "secret")
    worker = await start("double")
    environment = await asyncio.to_thread(Path(f"/proc/{worker.pid}/environ").read_bytes)
    assert b"PATH" in environment
    assert b"PENSTOCK_" not in environment


# Closing


async def test_close_lets_the_worker_finish_what_it_holds(start: Starter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker = await start("obedient")
    future = submit(worker, one(X, do="sleep", s=0.2))
    await worker.close(5.0)
    np.testing.assert_array_equal((await future).outputs["y"], X * 2)
    assert worker.exited
    assert any(record.getMessage() == "closed" for record in caplog.records), "the servable was not closed"


async def test_close_kills_what_does_not_finish_within_the_grace(start: Starter) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="sleep", s=100))
    began = time.monotonic()
    await worker.close(0.2)
    assert time.monotonic() - began < 1.0
    with pytest.raises(WorkerLost, match="time to finish"):
        await future


async def test_cycles_of_start_and_close_leave_no_descriptor_and_no_thread() -> None:
    async def cycle() -> None:
        worker = await WorkerProcess.start(spec("streamer"))
        await submit(worker, Batch([{"x": np.ones((1, 50_000), "f4")}], 1, False))
        async for _ in worker.stream({"x": X}, {"n": 3, "width": 50_000}):
            pass
        await worker.close(5.0)

    await cycle()
    before = resources_held()
    for _ in range(50):
        await cycle()
    assert resources_held() == before


async def test_without_descriptors_a_start_fails_cleanly() -> None:
    before = resources_held()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.dup(fillers[0]))
    highest = max(highest, fillers[-1])
    outcomes = []
    try:
        for more in range(24):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, limits[1]))
            try:
                worker = await WorkerProcess.start(spec("double"))
            except LoadError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("")
                await worker.close(5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)
    assert outcomes[0] != ""
    assert outcomes[-1] == ""
    assert all("Too many open files" in outcome for outcome in outcomes if outcome)
    assert resources_held() == before


async def test_a_worker_that_is_needed_no_more_ends_what_it_holds_within_its_callers_deadline() -> None:
    pool = Pool(lambda _: spec("obedient"), 1, load_timeout_s=20.0, timeout_s=0.1, hang_s=0.3, on_change=lambda: None)
    try:
        await pool.start()
        pool._resize(2)
        await until(lambda: len(pool.workers) == 2, 20)
        batch = one(X, do="sleep", s=1.5)
        batch.deadline = time.monotonic() + 20
        answer = submit(pool.workers[1], batch)
        pool._resize(1)
        assert len(pool.workers) == 1
        assert (await answer).outputs
    finally:
        await pool.close(1.0)
