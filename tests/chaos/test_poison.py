"""P2d and F6: a request that ends every worker it meets. It is refused after two, whoever sends it; its partners in the
batches that died are not blamed; and models whose workers always die are not started in a tight loop."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import server_processes as processes
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

import penstock
from penstock import ledger
from penstock.core.errors import PenstockError, ServableError, WorkerLost

MODELS = """
import os, time
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}}


@penstock.model(**PLAIN)
def m(x):
    time.sleep(0.002)
    if (x < 0).any():
        os.abort()
    return {"y": 3 * x}


@penstock.model(**PLAIN)
def always(x):
    os.abort()
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path / "models.py"


@pytest.mark.parametrize(
    ("poisons", "seconds"), [(2, 3.0), pytest.param(40, 60.0, marks=[pytest.mark.chaos, pytest.mark.timeout(200)])]
)
async def test_poison_ends_two_workers_and_is_refused_while_others_go_on(
    server: Callable[..., Any], models: Path, figure: Callable[..., None], poisons: int, seconds: float
) -> None:
    running = server({"m": {"path": f"{models}:m", "workers": 2, "max_batch_size": 8}}, fronts=2)
    ended: Counter[str] = Counter()

    async def poison(number: int, client: penstock.AsyncClient, rpc: triton.InferenceServerClient) -> None:
        """One set of inputs, asked again and again by two callers, each time alone or beside others."""
        x = np.array([-1.0 - number])
        for turn in range(6):
            try:
                if turn % 2:
                    await client.infer("m", {"x": x})
                else:
                    grpc_input = triton.InferInput("x", [1], "FP64")
                    grpc_input.set_data_from_numpy(x)
                    await rpc.infer("m", [grpc_input])
            except WorkerLost:
                ended["lost"] += 1
            except ServableError as error:
                assert "in a row and are refused" in str(error)
                ended["refused"] += 1
            except InferenceServerException as error:
                ended["refused" if "are refused" in str(error) else "lost"] += 1

    async def poison_all() -> None:
        rpc = triton.InferenceServerClient(running.grpc)
        async with penstock.AsyncClient(running.http, retries=0) as client:
            for number in range(poisons):
                await poison(number, client, rpc)
                await asyncio.sleep(seconds / poisons * 0.6)
        await rpc.close()

    plan = ledger.Plan(phases=(ledger.Phase(seconds, 100.0),), deadline_s=2.0, slack_s=0.3, grpc_share=0.3, payloads=16)
    payloads = [{"x": np.array([float(number)])} for number in range(1, 17)]
    report, _ = await asyncio.gather(
        ledger.run(ledger.Target(running.http, "m", grpc=running.grpc), plan, payloads), poison_all()
    )
    assert [str(one) for one in report.violations] == [], "an innocent request was refused"
    deaths = running.log.read_text().count('"worker_ended"')
    assert deaths == 2 * poisons
    assert ended == {"lost": 2 * poisons, "refused": 4 * poisons}
    summary = report.summary()
    assert summary.outcomes["ok"] > 0.75 * summary.sent, summary.outcomes
    async with penstock.AsyncClient(running.http, retries=3) as client:
        for payload in payloads:
            assert (await client.infer("m", payload))["y"].tolist() == (3 * payload["x"]).tolist()
    figure("P2d", "workers ended by one poisonous request sent again and again", deaths / poisons, "workers", goal="2")


@pytest.mark.chaos
async def test_model_whose_workers_never_answer_is_not_started_in_a_tight_loop(
    server: Callable[..., Any], models: Path
) -> None:
    """Always other inputs, so that the quarantine cannot help: the delays between starts grow."""
    running = server(
        {
            "m": {"path": f"{models}:always", "workers": 1, "warm_up": False, "batch": False},
            "n": {"path": f"{models}:m", "workers": 1},
        }
    )
    async with penstock.AsyncClient(running.http, retries=0) as client:
        async with asyncio.TaskGroup() as group:

            async def ask(value: float) -> None:
                try:
                    await client.infer("m", {"x": np.array([value])}, parameters={"timeout": 3_000_000})
                except PenstockError as error:
                    assert error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")

            for number in range(60):
                group.create_task(ask(2.0 + number))
        assert (await client.infer("n", {"x": np.ones(1)}))["y"] == 3
    delays = [
        json.loads(line)["delay_s"] for line in running.log.read_text().splitlines() if '"worker_replaced"' in line
    ]
    assert delays[:3] == [0.0, 0.2, 0.4]
    assert delays == sorted(delays)
    assert len(delays) <= 6
    processes.until(lambda: processes.workers(running.pid, "n"), 1, "the other model keeps its worker")
