"""P5b, P5d and P5e: batches hold no more rows than they may and wait no longer than they may, batching costs a lone
request nothing, and the metrics say of all this what happened."""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import penstock

MODELS = """
import time
import numpy as np
import penstock


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]", "rows": "i8[n]"})
def m(x):
    if len(x) > 16:
        raise ValueError(f"{len(x)} rows in a batch of at most 16")
    if x[0] == 7:
        time.sleep(0.05)
    return {"y": 3 * x, "rows": np.full(len(x), len(x))}
"""
WINDOW_S = 0.03


@pytest.fixture(scope="module")
def running(shared_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    (folder / "models.py").write_text(MODELS)
    table: dict[str, object] = {
        "path": f"{folder}/models.py:m", "workers": 1, "max_batch_size": 16, "warm_up": False,
        "shed": False,  # every request is to be answered: what is counted here are answers
    }  # fmt: skip
    models = {
        "pull": table,
        "window": {**table, "batch_delay_s": WINDOW_S},
        "padded": {**table, "batch_sizes": [4, 16]},
        "off": {key: value for key, value in table.items() if key != "max_batch_size"} | {"batch": False},
    }
    models |= {"pull-too": models["pull"], "off-too": models["off"]}
    return shared_server(models, timing_headers=True)


class Caller:
    """One kept connection; `ask` gives the rows of the batch and how long the request was queued, in seconds."""

    def __init__(self, url: str) -> None:
        self._place = urlsplit(url)

    async def __aenter__(self) -> Caller:
        self._streams = await asyncio.open_connection(self._place.hostname, self._place.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._streams[1].close()

    async def ask(self, model: str, x: list[float]) -> tuple[int, float]:
        reader, writer = self._streams
        data = ",".join(map(str, x))
        body = f'{{"inputs":[{{"name":"x","shape":[{len(x)}],"datatype":"FP64","data":[{data}]}}]}}'
        writer.write(
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert size is not None
        content = await reader.readexactly(int(size[1]))
        assert head.startswith(b"HTTP/1.1 200"), content
        answer = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
        assert answer["y"] == [3 * value for value in x]
        queued = re.search(rb"queue;dur=([\d.]+)", head)
        assert queued is not None
        return int(answer["rows"][0]), float(queued[1]) / 1e3


async def figures(running: Any, model: str) -> tuple[Counter[str], dict[str, float]]:
    """Batches by their release, and the other counters of a model by their name."""
    async with penstock.AsyncClient(running.http) as client:
        text = await client.metrics()
    by_release: Counter[str] = Counter()
    counters: dict[str, float] = {}
    for name, labels, value in re.findall(r"^penstock_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="(.*?)"', labels))
        if label.get("model") != model:
            continue
        if name == "batches_total":
            by_release[label["release"]] += int(float(value))
        elif "le" not in label and name != "requests_total":
            counters[name] = counters.get(name, 0) + float(value)
    return by_release, counters


@pytest.mark.parametrize("requests", [400, pytest.param(40_000, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("model", ["pull", "padded"])
async def test_no_batch_is_too_large_and_the_metrics_add_up(running: Any, model: str, requests: int) -> None:
    before = await figures(running, model)
    chance, left, rows = random.Random(3), iter(range(requests)), 0

    async def caller() -> None:
        nonlocal rows
        async with Caller(running.http) as connection:
            for _ in left:
                x = [float(chance.randrange(10, 10_000)) for _ in range(chance.choice((1, 1, 1, 2, 5, 16, 20)))]
                rows += len(x)
                batch_rows, _ = await connection.ask(model, x)
                assert batch_rows in ((4, 16) if model == "padded" else range(1, 17))

    await asyncio.gather(*(caller() for _ in range(24)))
    after = await figures(running, model)
    batches = after[0] - before[0]
    added = {name: value - before[1].get(name, 0) for name, value in after[1].items()}
    assert added["rows_total"] == rows
    assert batches.total() == added["worker_batches_total"] == added["batch_wait_seconds_count"]
    assert set(batches) <= {"full", "idle"}
    assert batches["full"] > 0 < batches["idle"]
    if model == "padded":
        # Every batch was run with 4 or with 16 rows.
        ran = rows + added["pad_rows_total"]
        assert ran % 4 == 0
        assert 4 * batches.total() <= ran <= 16 * batches.total()
    else:
        assert added["pad_rows_total"] == 0
    if "batch_rows_count" in added:
        assert (added["batch_rows_count"], added["batch_rows_sum"]) == (batches.total(), rows)


async def test_each_release_is_named_by_its_reason(running: Any) -> None:
    async with Caller(running.http) as connection:
        for model, x, reason in (
            ("pull", [1.0], "idle"), ("pull", [1.0] * 16, "full"), ("window", [1.0], "delay"),
            ("window", [1.0] * 16, "full"), ("off", [1.0], "single"),
        ):  # fmt: skip
            before, _ = await figures(running, model)
            await connection.ask(model, x)
            after, _ = await figures(running, model)
            assert after - before == {reason: 1}, f"{model} with {len(x)} rows"


@pytest.mark.parametrize("requests", [40, pytest.param(2000, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
async def test_waits_are_as_long_as_they_may_be_and_no_longer(
    running: Any, figure: Callable[..., None], requests: int
) -> None:
    """With a free worker: none without a window, and with one, its length."""
    lone, held, together = [], [], 0
    async with Caller(running.http) as one, Caller(running.http) as other:
        for _ in range(requests):
            lone.append((await one.ask("pull", [1.0]))[1])
            first = asyncio.create_task(one.ask("window", [1.0]))
            await asyncio.sleep(WINDOW_S / 3)
            joined = await other.ask("window", [2.0])
            held.append((await first)[1])
            together += joined[1] < held[-1] - WINDOW_S / 4  # who comes later goes with the first
    lone.sort()
    held.sort()
    assert together > requests / 2
    assert held[0] >= WINDOW_S - 0.002
    assert lone[len(lone) // 2] < 0.001
    assert held[len(held) // 2] < WINDOW_S + 0.005
    figure("P5b", "a lone request waits for a free worker, p99", lone[int(len(lone) * 0.99)] * 1e3, "ms", goal="0")
    figure("P5b", "wait beyond the window, p99", (held[int(len(held) * 0.99)] - WINDOW_S) * 1e3, "ms", goal="≤ 1 ms")


async def test_stream_does_not_wait_for_a_window(server: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        'import penstock\n@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})\ndef s(x):\n    yield {"y": x}\n'
    )
    running = server({"s": {"path": f"{tmp_path}/s.py:s", "workers": 1, "batch_delay_s": 5.0}})
    async with penstock.AsyncClient(running.http) as client:
        began = time.monotonic()
        assert [item async for item in client.stream("s", {"x": np.ones(1)})]
        assert time.monotonic() - began < 2.5, "nothing can join a stream, so there is nothing to wait for"


@pytest.mark.chaos
@pytest.mark.timeout(300)
async def test_batching_costs_a_lone_caller_nothing(running: Any, figure: Callable[..., None]) -> None:
    """Paired: in random turns with batching and without, on one connection. Two models of each, because where the system
    puts a worker's process alone makes some per cent."""
    kinds = {"pull": "on", "pull-too": "on", "off": "off", "off-too": "off"}
    ratios, order = [], list(kinds)
    async with Caller(running.http) as connection:
        for _ in range(30):
            took: dict[str, list[float]] = {model: [] for model in kinds}
            for _ in range(100):
                random.shuffle(order)
                for model in order:
                    began = time.perf_counter()
                    await connection.ask(model, [1.0])
                    took[model].append(time.perf_counter() - began)
            typical = {
                kind: sum(statistics.median(took[model]) for model in kinds if kinds[model] == kind)
                for kind in ("on", "off")
            }
            ratios.append(typical["on"] / typical["off"])
    slower = statistics.median(ratios) - 1
    figure("P5d", "batching on is slower than off for a lone caller by", slower * 100, "%", goal="≤ 5 %")
    assert slower < 0.05
