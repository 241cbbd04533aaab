"""Worker processes that a test starts and hands batches, with servables that behave as badly as user code can."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock.core.errors import (
    PenstockError,
)
from penstock.core.servable import LoadContext
from penstock.runtime.workers import Batch, BatchResult
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.process import WorkerProcess

SERVABLES = str(Path(__file__).parent.parent / "servables")


def spec(kind: str, **context: object) -> LoadSpec:
    return LoadSpec(
        "unruly:plug",
        "nowhere",
        LoadContext("m", 3, options={"kind": kind}, **context),  # type: ignore[arg-type]
        {"PYTHONPATH": SERVABLES},
        heartbeat_s=0.05,
    )


class Starter:
    def __init__(self) -> None:
        self.workers: list[WorkerProcess] = []

    async def __call__(self, kind: str, load_timeout_s: float = 20.0, **context: object) -> WorkerProcess:
        worker = await WorkerProcess.start(spec(kind, **context), load_timeout_s=load_timeout_s)
        self.workers.append(worker)
        return worker


def submit(worker: WorkerProcess, batch: Batch) -> asyncio.Future[BatchResult]:
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

    def done(outcome: BatchResult | PenstockError) -> None:
        if isinstance(outcome, PenstockError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    worker.run(batch, done)
    assert not future.done(), "done must be called later"
    return future


def one(x: np.ndarray, **parameters: object) -> Batch:
    return Batch([{"x": x}], len(x), True, parameters=parameters)  # type: ignore[arg-type]


X = np.arange(6, dtype="f4").reshape(2, 3)


async def until(claim: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "did not become true in time"
        await asyncio.sleep(0.005)


def resources_held() -> tuple[int, int]:
    """How many descriptors and threads this process has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()
