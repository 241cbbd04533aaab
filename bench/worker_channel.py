"""What crossing to a worker process costs: round trip and front processor time by size, and the time to start one.

    python bench/worker_channel.py [batches]

The worker echoes its inputs, so everything measured is crossing. Run on an otherwise idle machine.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time

import numpy as np
import uvloop

from penstock.core.errors import PenstockError
from penstock.core.servable import LoadContext
from penstock.runtime.workers import Batch, BatchResult
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.process import WorkerProcess


async def round_trips(worker: WorkerProcess, batch: Batch, count: int) -> tuple[float, float, float]:
    """Median and 99th percentile of the wall time, and the front's processor time, in µs a batch."""
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    walls: list[float] = []
    sent = 0.0

    def send() -> None:
        nonlocal sent
        sent = time.perf_counter()
        worker.run(batch, done)

    def done(outcome: BatchResult | PenstockError) -> None:
        walls.append(time.perf_counter() - sent)
        if isinstance(outcome, PenstockError):
            finished.set_exception(outcome)
        elif len(walls) == count:
            finished.set_result(None)
        else:
            send()

    processor = time.process_time()
    send()
    await finished
    processor = time.process_time() - processor
    return float(np.median(walls)) * 1e6, float(np.percentile(walls, 99)) * 1e6, processor / count * 1e6


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = LoadSpec("echo", folder, LoadContext("bench", 1))
        starts = []
        for _ in range(5):
            worker = await WorkerProcess.start(spec)
            starts.append(worker.load_s)
            await worker.close(5.0)
        print(f"start to loaded: {np.median(starts) * 1e3:.0f} ms (echo)")
        worker = await WorkerProcess.start(spec)
        print(f"{'batch':>28} {'p50 µs':>8} {'p99 µs':>8} {'front cpu µs':>13}")
        for parts, floats in ((1, 64), (32, 64), (1, 4096), (1, 8192), (1, 16384), (1, 150_528), (8, 150_528)):
            tensors = [{"x": np.random.default_rng(0).random((1, floats), "f4")} for _ in range(parts)]
            batch = Batch(tensors, parts, True)
            runs = count if floats * parts < 100_000 else max(100, count // 20)
            await round_trips(worker, batch, max(50, runs // 10))
            median, high, processor = await round_trips(worker, batch, runs)
            print(f"{parts:>12} x {floats:>7} floats {median:>8.1f} {high:>8.1f} {processor:>13.1f}")
        await worker.close(5.0)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
