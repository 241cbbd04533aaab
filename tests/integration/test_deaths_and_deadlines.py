"""What a version does when its worker dies or its stream is late: a manager with real workers, without listeners."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from penstock.core.errors import DeadlineExceeded, ServableError, WorkerLost
from penstock.core.messages import Request, Response
from penstock.runtime.batching import streams
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources.memory import MemorySource
from penstock.runtime.version import LoadedVersion
from penstock.telemetry.metrics import Metrics

MODELS = """
import asyncio, os, signal, time
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}}

@penstock.model(**PLAIN, batch=False)
def stream(x):
    for item in range(3):
        if x[0] < 0:
            os.abort()
        time.sleep(x[0] * item)
        yield {"y": x + item}

@penstock.model(**PLAIN, batch=False)
def slow(x):
    time.sleep(x[0])
    return {"y": x}

@penstock.model(**PLAIN, batch=False, concurrency=20)
async def poisoned(x):
    if x[0] < 0:
        os.abort()
    await asyncio.sleep(x[0])
    return {"y": x}

@penstock.model(**PLAIN, batch=False, concurrency=20)
async def waits(x):
    await asyncio.sleep(x[0])
    return {"y": x}
"""


@contextlib.asynccontextmanager
async def loaded(folder: Path, name: str) -> AsyncIterator[LoadedVersion]:
    (folder / "models.py").write_text(MODELS)
    manager = Manager(Metrics(), 2)
    # Without warm-up, whose made-up inputs would be times to sleep.
    manager.apply(MemorySource([ModelOptions(name="m", path=f"{folder}/models.py:{name}", warm_up=False)]).poll())
    await manager.settled()
    try:
        yield manager.find("m", "")
    finally:
        await manager.close(5)


def request(value: float, deadline_s: float = 20.0) -> Request:
    made = Request("m", {"x": np.array([value])}, deadline=time.monotonic() + deadline_s)
    made.timings.received = time.monotonic()
    return made


async def ask(batcher: Batcher, value: float) -> Response:
    return await batcher.submit(request(value), None, 1)


@pytest.mark.alone
async def test_stream_ends_at_its_deadline_though_the_model_computes_on(tmp_path: Path) -> None:
    async with loaded(tmp_path, "stream") as version:
        count, began = 0, time.monotonic()
        with pytest.raises(DeadlineExceeded):
            async for _ in streams.stream(version.batcher, request(1.0, 0.4), None, 1):
                count += 1
        assert (count, time.monotonic() - began < 0.9) == (1, True)
        # The slot is given back when the model has truly stopped.
        assert len([item async for item in streams.stream(version.batcher, request(0.0), None, 1)]) == 3
        assert version.batcher.in_flight == 0


async def test_stream_that_ends_worker_after_worker_is_refused(tmp_path: Path) -> None:
    async with loaded(tmp_path, "stream") as version:
        for _ in range(2):
            with pytest.raises(WorkerLost):
                await anext(streams.stream(version.batcher, request(-1.0), None, 1))
        with pytest.raises(ServableError, match="ended 2 workers"):
            await anext(streams.stream(version.batcher, request(-1.0), None, 1))


async def test_inputs_that_were_answered_since_are_not_blamed_for_a_worker_killed_by_somebody(tmp_path: Path) -> None:
    async with loaded(tmp_path, "slow") as version:
        assert version.pool is not None
        for death in range(6):
            asked = asyncio.create_task(ask(version.batcher, 0.5))
            for _ in range(500):
                await asyncio.sleep(0.02)
                if not version.batcher.queued:
                    break
            await asyncio.sleep(0.1)
            os.kill(version.pool.workers[0].pid, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                await asked
            if death % 3 == 2:  # three times in a row it is nobody's fault but the killer's
                assert (await ask(version.batcher, 0.5)).outputs["y"].tolist() == [0.5]


async def test_request_that_user_code_has_not_seen_outlives_its_worker(tmp_path: Path) -> None:
    async with loaded(tmp_path, "slow") as version:
        assert version.pool is not None
        for _ in range(3):
            pid = version.pool.workers[0].pid
            os.kill(pid, signal.SIGSTOP)  # what is sent now stays in the channel
            asked = asyncio.create_task(ask(version.batcher, 0.01))
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            assert (await asked).outputs["y"].tolist() == [0.01]
        assert version.batcher.in_flight == 0


async def test_stream_that_user_code_has_not_seen_outlives_its_worker(tmp_path: Path) -> None:
    async with loaded(tmp_path, "stream") as version:
        assert version.pool is not None
        pid = version.pool.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        answers = streams.stream(version.batcher, request(0.0), None, 1)
        first = asyncio.create_task(anext(answers))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        assert (await first).outputs["y"].tolist() == [0.0]
        assert [answer.outputs["y"].tolist() async for answer in answers] == [[1.0], [2.0]]
        assert version.batcher.in_flight == 0


async def test_request_that_always_died_in_company_still_runs(tmp_path: Path) -> None:
    async with loaded(tmp_path, "poisoned") as version:
        for poison in (-1.0, -2.0, -3.0):
            innocent = asyncio.create_task(ask(version.batcher, 0.5))
            await asyncio.sleep(0.1)
            both = await asyncio.gather(innocent, ask(version.batcher, poison), return_exceptions=True)
            assert [type(one) for one in both] == [WorkerLost, WorkerLost]
        assert (await ask(version.batcher, 0.5)).outputs["y"].tolist() == [0.5]


async def test_many_equal_requests_in_one_worker_take_part_in_one_death(tmp_path: Path) -> None:
    async with loaded(tmp_path, "poisoned") as version:
        assert version.pool is not None
        asked = [asyncio.create_task(ask(version.batcher, 0.5)) for _ in range(10)]
        await asyncio.sleep(0.1)
        os.kill(version.pool.workers[0].pid, signal.SIGKILL)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in ended} == {WorkerLost}
        assert (await ask(version.batcher, 0.5)).outputs["y"].tolist() == [0.5]


async def test_expected_wait_counts_every_slot_of_an_asyncio_worker(tmp_path: Path) -> None:
    async with loaded(tmp_path, "waits") as version:
        await ask(version.batcher, 0.3)  # from here on the batcher knows how long a row takes
        asked = []
        for _ in range(60):
            asked.append(version.batcher.submit(request(0.3, 1.5), None, 1))
            await asyncio.sleep(0)
        assert len(await asyncio.gather(*asked)) == 60


async def test_replacement_that_hangs_in_its_warm_up_is_replaced_itself(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    code = f"import os, time, penstock\nhangs = {str(hangs)!r}\n" + (
        '@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})\n'
        "def model(x):\n"
        "    if os.path.exists(hangs):\n"
        "        os.remove(hangs)\n"
        "        time.sleep(600)\n"
        "    return {'y': x}\n"
    )
    (tmp_path / "model.py").write_text(code)
    manager = Manager(Metrics(), 2)
    options = ModelOptions(name="m", path=f"{tmp_path}/model.py:model", load_timeout_s=3.0)
    manager.apply(MemorySource([options]).poll())
    await manager.settled()
    try:
        version = manager.find("m", "")
        assert version.pool is not None
        hangs.write_text("")
        os.kill(version.pool.workers[0].pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        assert (await ask(version.batcher, 1.0)).outputs["y"].tolist() == [1.0]
        assert not hangs.exists()
    finally:
        await manager.close(5)
