"""P14: many small models in less memory than they take, behind one real server."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
import running_server
from onnx import TensorProto, helper, numpy_helper

from penstock.client import Client
from penstock.core.errors import PenstockError

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()


def write_models(folder: Path, count: int, kib: int = 128) -> None:
    """Models `m0000`, … with some weights each, which answer their own number."""
    columns = kib * 1024 // 4 // 64
    values = np.random.default_rng(0)
    first, second = values.normal(size=(4, 64)).astype("f4"), values.normal(size=(64, columns)).astype("f4")
    for number in range(count):
        nodes = [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("MatMul", ["a", "second"], ["b"]),
            helper.make_node("Mul", ["b", "nothing"], ["c"]),
            helper.make_node("ReduceSum", ["c", "axes"], ["d"], keepdims=0),
            helper.make_node("Add", ["d", "number"], ["y"]),
        ]
        constants = {"first": first, "second": second, "nothing": np.float32(0), "axes": np.array([1]),
                     "number": np.float32(number)}  # fmt: skip
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        place = folder / f"m{number:04}" / "1"
        place.mkdir(parents=True)
        onnx.save(model, place / "model.onnx")


def figures(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(penstock_models?_\S+) (\S+)$", text, re.M)}


WOKEN = 'penstock_model_wakes_total{outcome="success"}'
EVICTED = 'penstock_model_evictions_total{cause="memory"}'


class Caller:
    """One connection."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def __aenter__(self) -> Caller:
        self._reader, self._writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, number: int) -> float:
        """The seconds until the right answer."""
        began = time.perf_counter()
        path = f"/v2/models/m{number:04}/infer"
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(BODY)}\r\n\r\n"
        self._writer.write(head.encode() + BODY)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer, re.I)
        assert length is not None
        body = await self._reader.readexactly(int(length[1]))
        assert b" 200 " in answer[:15], (answer, body)
        assert json.loads(body)["outputs"][0]["data"] == [float(number)], body
        return time.perf_counter() - began


@dataclass
class Seen:
    first: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)  # the same model at once again: it is in memory


async def zipf(url: str, count: int, seconds: float, callers: int, pace_s: float) -> Seen:
    """Callers who ask for models by Zipf's law, each twice."""
    seen = Seen()
    weights = [1 / (rank + 1) for rank in range(count)]
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)

    async def one(seed: int) -> None:
        chance, until = random.Random(seed), time.monotonic() + seconds
        async with Caller(url) as caller:
            while time.monotonic() < until:
                (number,) = chance.choices(numbers, weights)
                seen.first.append(await caller.ask(number))
                seen.again.append(await caller.ask(number))
                await asyncio.sleep(chance.expovariate(1 / pace_s))

    await asyncio.gather(*(one(seed) for seed in range(callers)))
    return seen


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@pytest.mark.parametrize(
    ("count", "seconds", "budget"),
    [
        (30, 3.0, "16MiB"),
        pytest.param(200, 20.0, "64MiB", marks=[pytest.mark.chaos, pytest.mark.timeout(400)]),
        pytest.param(1000, 60.0, "320MiB", marks=[pytest.mark.chaos, pytest.mark.timeout(1200)]),
    ],
)
def test_more_models_than_memory_all_answer(server, tmp_path, figure, monkeypatch, count, seconds, budget):
    monkeypatch.setattr(running_server, "START_S", 900.0)
    write_models(tmp_path / "models", count)
    running = server(
        {}, serve=[str(tmp_path / "models")], models_memory_bytes=budget, model_control="none", log_level="debug"
    )
    before = figures(running.http)
    assert 0 < before["penstock_models_resident"] < count
    assert before["penstock_models_resident_bytes"] <= before["penstock_models_budget_bytes"]

    seen = asyncio.run(zipf(running.http, count, seconds, 4, 0.01))
    after = figures(running.http)
    assert after["penstock_models_resident_bytes"] <= after["penstock_models_budget_bytes"]
    assert after[WOKEN] > 0 and after[EVICTED] > 0
    asked = len(seen.first) + len(seen.again)
    figure("P14", f"{count} models in {budget}, zipf: p99 of a model in memory", quantile(seen.again, 0.99) * 1e3, "ms",
           goal="≤ 10 ms")  # fmt: skip
    figure("P14", f"{count} models in {budget}, zipf: evictions of 100 requests", 100 * after[EVICTED] / asked, "")
    # On a machine that others use at the same time, so the promise's own 10 ms are the figure's goal.
    assert quantile(seen.again, 0.5) < 0.05

    # Round and round through more than fits: by the least recently used, every request is a miss.
    misses = asyncio.run(round_and_round(running.http, min(count, 60)))
    loads = [
        json.loads(line)["seconds"] for line in running.log.read_text().splitlines() if '"event":"model_woken"' in line
    ][-len(misses) :]
    figure("P14", f"{count} models in {budget}: p50 of a miss", quantile(misses, 0.5) * 1e3, "ms")
    over = quantile(misses, 0.99) / quantile(loads, 0.99)
    figure("P14", f"{count} models in {budget}: p99 of a miss, as a share of the load time's", over, "x", goal="≤ 1.1")
    assert quantile(misses, 0.5) < 1.0


async def round_and_round(url: str, count: int) -> list[float]:
    async with Caller(url) as caller:
        for number in range(count):
            await caller.ask(number)
        return [await caller.ask(number) for number in range(count)]


def test_models_that_rest_answer_for_themselves_and_the_index_tells_them_apart(server, tmp_path):
    write_models(tmp_path / "models", 6)
    running = server({}, serve=[str(tmp_path / "models")], models_memory_bytes="6MiB", model_control="none", fronts=2)
    with Client(running.http) as client:
        with urllib.request.urlopen(f"{running.http}/v2/repository/index", data=b"{}", timeout=20) as answer:
            index = json.loads(answer.read())
        resting = [line["name"] for line in index if line["reason"]]
        assert {line["state"] for line in index} == {"READY"}
        assert 0 < len(resting) < 6 and "not in memory" in next(line["reason"] for line in index if line["reason"])
        assert all(client.ready(name) for name in resting)
        assert client.metadata(resting[0]).versions == ("1",)  # which loads nothing
        assert figures(running.http)[WOKEN] == 0
        answers = client.infer(resting[0], {"x": np.ones((1, 4), "f4")})
        assert answers["y"].tolist() == [float(resting[0][1:])]
        assert figures(running.http)[WOKEN] == 1


def test_a_rested_model_whose_files_were_changed_serves_nothing_else(server, tmp_path):
    write_models(tmp_path / "models", 2)
    running = server({}, serve=[str(tmp_path / "models")], idle_unload_s=0.2, model_control="none")
    until = time.monotonic() + 20
    while figures(running.http)["penstock_models_resident"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    (tmp_path / "models" / "m0000" / "1" / "model.onnx").write_bytes(b"something else")
    with Client(running.http) as client:
        with pytest.raises(PenstockError, match="no longer what version 1 was loaded from"):
            client.infer("m0000", {"x": np.ones((1, 4), "f4")})
        assert client.infer("m0001", {"x": np.ones((1, 4), "f4")})["y"].tolist() == [1.0]
        assert figures(running.http)['penstock_model_wakes_total{outcome="failure"}'] >= 1  # the client tries again
        with urllib.request.urlopen(f"{running.http}/v2/repository/index", data=b"{}", timeout=20) as answer:
            reasons = {line["name"]: line["reason"] for line in json.loads(answer.read())}
        assert "the last load failed: model.onnx is no longer what" in reasons["m0000"]
        assert "failed" not in reasons["m0001"]


def test_worker_processes_rest_too(server, tmp_path):
    (tmp_path / "code.py").write_text(
        "import penstock\n\n@penstock.model(inputs={'x': 'f4[n]'}, outputs={'y': 'f4[n]'})\n"
        "def twice(x):\n    return {'y': 2 * x}\n"
    )
    running = server({"twice": {"path": f"{tmp_path}/code.py:twice", "workers": 1}}, idle_unload_s=0.3)
    with Client(running.http) as client:
        until = time.monotonic() + 20
        while figures(running.http)["penstock_models_resident"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert client.ready("twice")
        assert client.infer("twice", {"x": np.ones(1, "f4")})["y"].tolist() == [2.0]
        assert figures(running.http)["penstock_models_resident_bytes"] > 1 << 20


def test_a_model_that_can_never_fit_is_refused_at_the_start(server, tmp_path):
    write_models(tmp_path / "models", 1, kib=4096)
    with pytest.raises(RuntimeError, match="models_memory_bytes is 2097152"):
        server({}, serve=[str(tmp_path / "models")], models_memory_bytes="2MiB", model_control="none")
