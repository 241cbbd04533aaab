"""Streams and asyncio servables in a real worker process; workers that break the protocol."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from started_workers import Starter, X, one, submit, until

from penstock.core.errors import (
    DeadlineExceeded,
    PenstockError,
    ServableError,
    WorkerLost,
)
from penstock.runtime.workers import BatchResult


async def test_a_stream_yields_every_item_in_order_and_frees_its_slot(start: Starter) -> None:
    for kind in ("streamer", "async_streamer"):
        worker = await start(kind)
        slots = worker.free_slots
        for width in (1, 50_000):  # inline, and through shared memory
            stream = worker.stream({"x": X}, {"n": 20, "width": width})
            assert worker.free_slots == slots - 1
            kept = [item["y"] async for item in stream]
            assert [float(y[0, 0]) for y in kept] == list(range(20))
            assert all((y == y[0, 0]).all() for y in kept), "a later item overwrote an earlier one"
            assert worker.free_slots == slots


async def test_a_model_without_streams_yields_its_one_answer(start: Starter) -> None:
    worker = await start("double")
    items = [item async for item in worker.stream({"x": X}, {})]
    assert len(items) == 1
    np.testing.assert_array_equal(items[0]["y"], X * 2)


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
@pytest.mark.parametrize("width", [1, 50_000])
async def test_closing_a_stream_stops_the_model_within_one_item_of_the_window(
    start: Starter, tmp_path: Path, kind: str, width: int
) -> None:
    worker = await start(kind)
    freed = []
    worker.on_free(lambda: freed.append(True))
    log = tmp_path / "made"
    stream = worker.stream({"x": X}, {"n": 10_000, "width": width, "log": str(log)})
    await anext(stream)
    await stream.aclose()
    await until(log.exists)
    await until(lambda: log.read_text() != "")
    assert int(log.read_text()) <= 7  # taken, the window of 4, one ready to be sent, one in the making
    await until(lambda: bool(freed))
    assert worker.free_slots == worker.signature.concurrency
    assert [item async for item in stream] == []


async def test_letting_go_of_a_stream_stops_the_model(start: Starter, tmp_path: Path) -> None:
    worker = await start("streamer")
    stream = worker.stream({"x": X}, {"n": 10_000, "log": str(tmp_path / "made")})
    await anext(stream)
    del stream
    gc.collect()
    await until(lambda: worker.free_slots == 1)


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
async def test_a_slow_reader_holds_the_model_back(start: Starter, tmp_path: Path, kind: str) -> None:
    worker = await start(kind)
    log = tmp_path / "made"
    stream = worker.stream({"x": X}, {"n": 1000, "log": str(log)})
    await anext(stream)
    await asyncio.sleep(0.3)  # time in which an unbounded model would make all of them
    assert not log.exists()
    await stream.aclose()
    await until(lambda: log.exists() and log.read_text() != "")
    assert int(log.read_text()) <= 7


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
async def test_an_error_in_a_stream_is_raised_after_the_items_before_it(start: Starter, kind: str) -> None:
    worker = await start(kind)
    got = []
    with pytest.raises(ServableError, match="lost the thread"):
        async for item in worker.stream({"x": X}, {"n": 10, "raise_after": 3}):
            got.append(float(item["y"][0, 0]))  # noqa: PERF401  # what came before the error counts
    assert got == [0, 1, 2]
    assert worker.free_slots == worker.signature.concurrency


async def test_the_death_of_the_worker_breaks_its_streams_with_an_error(start: Starter) -> None:
    worker = await start("streamer")
    got = []
    with pytest.raises(WorkerLost, match="SIGKILL"):
        async for item in worker.stream({"x": X}, {"n": 10, "die_after": 2}):
            got.append(float(item["y"][0, 0]))  # noqa: PERF401  # what came before the error counts
    assert got == [0, 1]


@pytest.mark.parametrize("kind", ["streamer", "async_streamer"])
async def test_a_stream_beyond_its_deadline_ends_with_an_error(start: Starter, kind: str) -> None:
    worker = await start(kind)
    with pytest.raises(DeadlineExceeded):
        async for _ in worker.stream({"x": X}, {"n": 1_000_000}, time.monotonic() + 0.2):
            pass
    await until(lambda: worker.free_slots == worker.signature.concurrency)


# Servables that are asyncio code


async def test_asyncio_models_hold_as_many_batches_as_they_declare(start: Starter) -> None:
    worker = await start("together")
    assert worker.free_slots == 8
    inputs = [np.full((1, 20_000 if number % 2 else 3), float(number), "f4") for number in range(8)]
    futures = [submit(worker, one(x, n=8)) for x in inputs]
    assert worker.free_slots == 0
    for x, result in zip(inputs, await asyncio.gather(*futures), strict=True):
        np.testing.assert_array_equal(result.outputs["y"], x * 2)
    assert worker.free_slots == 8


async def test_an_asyncio_batch_beyond_its_deadline_is_cancelled(start: Starter) -> None:
    worker = await start("together")
    batch = one(X, n=2)
    batch.deadline = time.monotonic() + 0.2
    with pytest.raises(DeadlineExceeded):
        await submit(worker, batch)
    assert worker.free_slots == 8


async def test_an_asyncio_batch_that_is_abandoned_before_it_begins_is_answered_too(start: Starter) -> None:
    worker = await start("together")
    for _ in range(50):
        future: asyncio.Future[BatchResult | PenstockError] = asyncio.get_running_loop().create_future()
        worker.abandon(worker.run(one(X, n=1), future.set_result))
        async with asyncio.timeout(10.0):
            await future
    assert worker.free_slots == 8


async def test_an_asyncio_error_fails_its_batch_alone(start: Starter) -> None:
    worker = await start("together")
    good, bad = submit(worker, one(X, n=2)), submit(worker, one(X, n=2, do="raise"))
    with pytest.raises(ServableError, match="async and wrong"):
        await bad
    np.testing.assert_array_equal((await good).outputs["y"], X * 2)
    await worker.close(5.0)


async def test_a_coroutine_predict_is_awaited(start: Starter) -> None:
    worker = await start("coroutine")
    np.testing.assert_array_equal((await submit(worker, one(X))).outputs["y"], X * 2)
    await worker.close(5.0)
    assert worker.cause == "it exited with code 0"


async def test_the_death_of_an_asyncio_worker_fails_all_it_holds(start: Starter) -> None:
    worker = await start("together")
    futures = [submit(worker, one(X, n=9)) for _ in range(8)]
    os.kill(worker.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WorkerLost] * 8


# Trouble between the two


async def test_a_worker_that_sends_garbage_is_ended(start: Starter) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match="cannot be read"):
        await submit(worker, one(X, do="garbage"))


async def test_a_worker_that_closes_its_end_is_ended(start: Starter) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match=r"closed its connection|exited with code 1"):
        await submit(worker, one(X, do="hang_up"))
