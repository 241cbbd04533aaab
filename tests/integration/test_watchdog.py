"""What the watchdog of worker processes must leave alone, and what must not stop it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from penstock.core.servable import LoadContext
from penstock.runtime.workers import states
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.pool import Pool
from penstock.runtime.workers.process import WorkerProcess

Factory = Callable[..., Any]
_SET_NAME = 15  # prctl's PR_SET_NAME

MODELS = """
import ctypes, time
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}, "batch": False}
holding = ctypes.PyDLL(None)  # calls keep the interpreter lock


@penstock.model(**PLAIN)
def sleeps(x):
    time.sleep(float(x[0]))
    return {"y": x}


@penstock.model(**PLAIN)
def holds(x):
    holding.usleep(int(x[0] * 1e6))
    return {"y": x}
"""


def ask(http: str, model: str, seconds: float, deadline_s: float) -> int:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [seconds]}]}
    request = urllib.request.Request(
        f"{http}/v2/models/{model}/infer",
        data=json.dumps(body).encode(),
        headers={"Penstock-Timeout-Ms": f"{deadline_s * 1000:.0f}"},
    )
    return status_of(request)


def status_of(request: urllib.request.Request | str) -> int:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def serve(server: Factory, tmp_path: Path, model: str, **options: object) -> Any:
    (tmp_path / "models.py").write_text(MODELS)
    path = f"{tmp_path}/models.py:{model}"
    return server({model: {"path": path, "workers": 1, "warm_up": False, **options}})


def test_callers_in_a_hurry_end_no_worker_and_convict_no_inputs(server: Factory, tmp_path: Path) -> None:
    """The model takes longer than their deadline and `hang_s`, but not longer than its owner allows."""
    running = serve(server, tmp_path, "sleeps", hang_s=0.3, timeout_s=20)
    for _ in range(2):
        assert ask(running.http, "sleeps", 1.5, 0.1) == 504
        assert ask(running.http, "sleeps", 0.0, 20.0) == 200, "as soon as the slot is free"
    assert ask(running.http, "sleeps", 1.5, 20.0) == 200
    assert "worker_stuck" not in running.log.read_text() + "".join(running.lines)


def test_worker_that_ends_its_work_when_it_is_found_stuck_is_kept(server: Factory, tmp_path: Path) -> None:
    """It is killed a moment later, for its stacks to be saved: not with what it was given in that moment."""
    running = serve(server, tmp_path, "sleeps", hang_s=1.0, timeout_s=0.1)
    with ThreadPoolExecutor(2) as callers:
        for round_ in range(5):
            late = callers.submit(ask, running.http, "sleeps", 1.25 + round_ / 50, 0.1)
            time.sleep(0.05)  # so that the next one waits behind it
            assert ask(running.http, "sleeps", 0.3 + round_ / 1000, 20.0) == 200
            assert late.result() == 504


def test_server_is_ready_while_a_batch_holds_the_interpreter(server: Factory, tmp_path: Path) -> None:
    running = serve(server, tmp_path, "holds", hang_s=10.0)
    with ThreadPoolExecutor(1) as callers:
        batch = callers.submit(ask, running.http, "holds", 1.5, 20.0)
        seen = []
        while not batch.done():
            seen.append(status_of(f"{running.http}/v2/health/ready"))
            time.sleep(0.03)
        assert batch.result() == 200
    assert len(seen) > 5
    assert set(seen) == {200}


def test_thread_whose_name_is_cut_inside_a_character_is_shown() -> None:
    named, end = threading.Event(), threading.Event()

    def run() -> None:
        ctypes.CDLL(None).prctl(_SET_NAME, "Vorhersagen-fü".encode()[:14], 0, 0, 0)
        named.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert named.wait(5)
        (line,) = (line for line in states.of_threads(os.getpid()) if line.startswith(f"{thread.native_id} "))
        assert "Vorhersagen-f" in line
    finally:
        end.set()
        thread.join()


async def test_seat_is_filled_after_a_start_that_failed_as_nobody_foresaw() -> None:
    """No thread for the warm-up can be started once, for example."""
    plug = LoadSpec(
        "unruly:plug",
        "nowhere",
        LoadContext("m", 3, options={"kind": "echo"}),
        {"PYTHONPATH": str(Path(__file__).parent / "servables")},
    )
    changed = asyncio.Event()
    pool = Pool(lambda _: plug, 1, load_timeout_s=20.0, timeout_s=60.0, hang_s=10.0, on_change=changed.set)
    failed: list[WorkerProcess] = []

    async def check(worker: WorkerProcess) -> None:
        if not failed:
            failed.append(worker)
            raise RuntimeError("can't start new thread")

    pool.check = check
    try:
        first = await pool.start()
        os.kill(first.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while not pool.workers or pool.workers == [first]:
                changed.clear()
                await changed.wait()
        assert failed, "the second start was the one that failed"
        assert failed[0].exited, "and left no process behind"
        assert pool.workers[0] not in (first, *failed)
    finally:
        await pool.close(1.0)


def test_a_pool_that_is_closed_as_soon_as_it_has_started_drops_no_task() -> None:
    """As after a load whose next step fails: tasks are cancelled that have not begun."""
    plug = LoadSpec(
        "unruly:plug",
        "nowhere",
        LoadContext("m", 3, options={"kind": "echo"}),
        {"PYTHONPATH": str(Path(__file__).parent / "servables")},
    )

    async def story() -> None:
        pool = Pool(lambda _: plug, 1, load_timeout_s=20.0, timeout_s=60.0, hang_s=10.0, on_change=lambda: None)
        await pool.start()
        await pool.close(1.0)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(story())
        gc.collect()
    assert not [str(each.message) for each in seen if "never awaited" in str(each.message)]
