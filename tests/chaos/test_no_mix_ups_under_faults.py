"""P5a while workers die: every row of every answer is its own request's, and every request ends once and is counted once.

Each row carries a number that no other row of the run carries, and every output is made from it. Requests are of random
size; some hold a bad row, some have too little time. A worker is killed every second. All goes over two fronts, to
models in worker processes (batches, asyncio, streams) and inline. See also integration/test_no_mix_ups.py.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import server_processes as processes

import penstock
from penstock.core import errors

onnx = pytest.importorskip("onnx", reason="needs onnx to write a model: make test installs it")

MODELS = """
import asyncio, time
import numpy as np
import penstock

PLAIN = {"inputs": {"x": "i8[n]"}, "outputs": {"y": "i8[n]", "rows": "i8[n]"}}
MOST = 32


def joined(x):
    if len(x) > MOST:
        raise SystemExit(f"{len(x)} rows in a batch of at most {MOST}")
    return answer(x)


def answer(x):
    if (x % 1_000_003 == 0).any():
        raise ValueError("a bad row")
    return {"y": 3 * x + 1, "rows": np.full(len(x), len(x))}


@penstock.model(**PLAIN)
def batches(x):
    if x[0] % 4 == 0:
        time.sleep(0.003)
    return joined(x)


@penstock.model(**PLAIN, concurrency=8)
async def overlapping(x):
    await asyncio.sleep(0.002 * (x[0] % 3))
    return joined(x)


@penstock.model(**PLAIN, batch=False)
def streams(x):
    for part in np.array_split(x, 3):
        yield answer(part)
"""
KINDS = ("batches", "overlapping", "streams", "inline")
OUTCOMES = {
    errors.WorkerLost: "worker_lost", errors.DeadlineExceeded: "deadline", errors.ServableError: "model_error",
    errors.Overloaded: "queue_full",
}  # fmt: skip


def write_onnx(path: Path) -> None:
    helper, integer = onnx.helper, onnx.TensorProto.INT64
    values = {"three": np.array(3), "one": np.array(1)}
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "three"], ["tripled"]),
            helper.make_node("Add", ["tripled", "one"], ["y"]),
            helper.make_node("Identity", ["x"], ["rows"]),
        ],
        "fingerprint",
        [helper.make_tensor_value_info("x", integer, ["n"])],
        [helper.make_tensor_value_info(name, integer, ["n"]) for name in ("y", "rows")],
        [onnx.numpy_helper.from_array(value.astype("i8"), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("total", "most_rows"),
    [(30_000, 16), pytest.param(10_000_000, 100, marks=[pytest.mark.chaos, pytest.mark.timeout(5400)])],
)
async def test_every_row_of_every_answer_is_its_own_though_workers_die(
    server: Callable[..., Any], tmp_path: Path, figure: Callable[..., None], total: int, most_rows: int
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    write_onnx(tmp_path / "fingerprint.onnx")
    table: dict[str, object] = {"max_batch_size": 32, "batch_delay_s": 0.002, "workers": 2, "warm_up": False}
    models: dict[str, dict[str, object]] = {
        name: {**table, "path": f"{tmp_path}/models.py:{name}"} for name in KINDS if name != "inline"
    }
    for unused in ("batch_delay_s", "max_batch_size"):
        del models["streams"][unused]
    models["inline"] = {"path": str(tmp_path / "fingerprint.onnx"), "max_batch_size": 32, "executor": "inline"}
    running = server(models, fronts=2)
    chance = random.Random(5)
    fingerprints = ((number * 0x9E3779B97F4A7C15) % 2**60 * 1_000_003 % 2**60 for number in itertools.count(1))
    asked = 0
    ended: Counter[tuple[str, str]] = Counter()
    mixed_up: list[str] = []
    deaths = 0

    async def one(client: penstock.AsyncClient) -> None:
        nonlocal asked
        kind, rows = chance.choice(KINDS), chance.randint(1, most_rows)
        x = np.fromiter(itertools.islice(fingerprints, rows), "i8", rows)
        x += x % 1_000_003 == 0
        bad = kind != "inline" and chance.random() < 0.05
        if bad:
            x[chance.randrange(rows)] = 1_000_003 * chance.randrange(1, 2**40)
        asked += rows
        parameters = {"timeout": chance.randrange(500, 20_000)} if chance.random() < 0.05 else {}
        try:
            if kind == "streams":
                parts = [part["y"] async for part in client.stream(kind, {"x": x}, parameters=parameters)]
                y = np.concatenate([np.asarray(part).ravel() for part in parts])
            else:
                answer = await client.infer(kind, {"x": x}, parameters=parameters)
                y = answer["y"]
        except tuple(OUTCOMES) as error:
            ended[kind, OUTCOMES[type(error)]] += 1
            if isinstance(error, errors.ServableError) and not bad:
                mixed_up.append(f"{kind} failed for somebody else's row: {error}")
            return
        ended[kind, "success"] += 1
        if bad:
            mixed_up.append(f"{kind} answered a bad row")
        if y.shape != x.shape or (y != 3 * x + 1).any():
            mixed_up.append(f"{kind}: {y} for {x}")

    async def caller() -> None:
        async with penstock.AsyncClient(running.http, retries=0, timeout_s=60) as client:
            while asked < total:
                await one(client)

    async def reaper() -> None:
        """Kills a worker of one model after the other, of those whose workers all serve: who kills faster than workers
        start ends with a server of none."""
        nonlocal deaths
        async with penstock.AsyncClient(running.http) as client:
            for kind in itertools.cycle(("batches", "overlapping", "streams")):
                await asyncio.sleep(1.0 if total > 100_000 else 0.2)
                ready = re.findall(
                    rf'^penstock_worker_ready\{{.*"{kind}".*\}} 1\.0', await client.metrics(), re.MULTILINE
                )
                if len(ready) == 2:
                    processes.kill([chance.choice(processes.workers(running.pid, kind))], signal.SIGKILL)
                    deaths += 1

    async with penstock.AsyncClient(running.http) as client:
        before = await quiet(client)
        killing = asyncio.create_task(reaper())
        await asyncio.gather(*(caller() for _ in range(32)))
        killing.cancel()
        assert mixed_up == [], f"{len(mixed_up)}: {mixed_up[:3]}"
        assert deaths >= 1
        assert await quiet(client) - before == ended, "what callers saw and what the server counted"
    assert {kind for kind, outcome in ended if outcome == "success"} == set(KINDS)
    assert ended["batches", "success"] > 0.5 * sum(n for (kind, _), n in ended.items() if kind == "batches")
    if total > 100_000:
        figure("P5a", f"rows answered with another's, of {asked:,}, with {deaths} workers killed", 0, "rows", goal="0")


async def quiet(client: penstock.AsyncClient) -> Counter[tuple[str, str]]:
    """Ended requests by model and outcome as the server counts them, once it holds none and counts no more."""
    last: Counter[tuple[str, str]] | None = None
    for _ in range(300):
        text = await client.metrics()
        held = sum(
            float(value) for value in re.findall(r"^penstock_requests_(?:in_flight|queued)\{.*\} (\S+)$", text, re.M)
        )
        ended: Counter[tuple[str, str]] = Counter()
        for labels, value in re.findall(r"^penstock_requests_total\{(.*)\} (\S+)$", text, re.M):
            label = dict(re.findall(r'(\w+)="(.*?)"', labels))
            ended[label["model"], label["outcome"]] += int(float(value))
        if not held and +ended == last:
            return last
        last = +ended
        await asyncio.sleep(0.1)
    raise AssertionError("the server never became quiet")
