"""P3a, P3c and F15: servers are replaced one after the other behind a balancer that learns of it late. Nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late_proxy import LateProxy

import penstock
from penstock import ledger

MODEL = """
import penstock

@penstock.model(inputs={"x": "f8[n, 4]"}, outputs={"y": "f8[n, 4]"})
def triple(x):
    return {"y": 3 * x}
"""


@pytest.fixture
def proxied() -> Iterator[Callable[[float], LateProxy]]:
    with contextlib.ExitStack() as stack:

        def start(late_s: float) -> LateProxy:
            proxy = LateProxy(late_s)
            stack.callback(proxy.close)
            return proxy

        yield start


@pytest.mark.parametrize(
    ("restarts", "late_s", "rate", "fronts"),
    [
        (1, 0.4, 150.0, 1),
        pytest.param(100, 5.0, 500.0, 1, marks=[pytest.mark.chaos, pytest.mark.timeout(5400)]),
        pytest.param(10, 1.0, 300.0, 2, marks=[pytest.mark.chaos, pytest.mark.timeout(1200)]),
    ],
)
async def test_rolling_restarts_cost_no_request(
    server: Callable[..., Any], proxied: Callable[[float], LateProxy], tmp_path: Path, figure: Callable[..., None],
    restarts: int, late_s: float, rate: float, fronts: int,
) -> None:  # fmt: skip
    (tmp_path / "triple.py").write_text(MODEL)
    lame_duck_s = 1.6 * late_s + 0.5  # gRPC's connections move once more in the last third
    took: list[float] = []

    def start() -> Any:
        began = time.monotonic()
        table = {"m": {"path": f"{tmp_path}/triple.py:triple", "workers": 1}}
        running = server(table, lame_duck_s=lame_duck_s, grace_s=10, fronts=fronts)
        took.append(time.monotonic() - began)
        return running

    proxy = proxied(late_s)
    serving = [start(), start()]
    for one in serving:
        proxy.tell("add", one.http, one.grpc)
    await asyncio.sleep(late_s + 0.1)
    seconds = restarts * (1.3 * max(took) + late_s + lame_duck_s + 0.5) + 1
    done: list[float] = []
    begun = time.monotonic()

    def roll() -> None:
        for _ in range(restarts):
            if time.monotonic() - begun > seconds:
                return
            new = start()
            proxy.tell("add", new.http, new.grpc)
            time.sleep(late_s)  # surge first: a controller waits until the balancer can know
            old = serving.pop(0)
            proxy.tell("remove", old.http, old.grpc)
            stopping = time.monotonic()
            assert old.stop() == 0
            assert time.monotonic() - stopping < lame_duck_s + 10 + 2, "the stated bound"
            serving.append(new)
            done.append(time.monotonic() - begun)

    plan = ledger.Plan(
        phases=(ledger.Phase(seconds, rate),), deadline_s=10.0, grpc_share=0.5, connections=64,
        faults=(ledger.Fault(0.2, "roll", call=roll),), allowed=frozenset({"ok"}),
    )  # fmt: skip
    report = await ledger.run(ledger.Target(proxy.http, "m", grpc=proxy.grpc), plan)
    under_load = sum(at <= seconds for at in done)
    failed = report.summary().sent - report.summary().outcomes["ok"]
    # Two servers share what is asked, and each counts from 0: the counters say nothing here.
    assert [str(one) for one in report.violations if one.kind != "miscounted"] == []
    assert failed == 0
    assert under_load >= max(1, restarts * 0.6), f"only {under_load} of {restarts} restarts fell under load"
    figure("P3a", f"failed requests in {under_load} rolling restarts at {rate:g} req/s, balancer {late_s:g} s late", failed, "requests", goal="0")  # fmt: skip


async def test_server_that_does_not_start_leaves_the_old_one_serving(
    server: Callable[..., Any], proxied: Callable[[float], LateProxy], tmp_path: Path
) -> None:
    (tmp_path / "triple.py").write_text(MODEL)
    (tmp_path / "broken.py").write_text(MODEL.replace("import penstock", "import penstock, no_such_module"))
    old = server({"m": {"path": f"{tmp_path}/triple.py:triple", "workers": 1}})
    proxy = proxied(0.0)
    proxy.tell("add", old.http, old.grpc)

    def update() -> None:
        with pytest.raises(RuntimeError, match="no_such_module"):
            server({"m": {"path": f"{tmp_path}/broken.py:triple", "workers": 1}})

    plan = ledger.Plan(
        phases=(ledger.Phase(1.5, 100.0),), deadline_s=5.0, faults=(ledger.Fault(0.1, "update", call=update),),
        allowed=frozenset({"ok"}),
    )  # fmt: skip
    report = await ledger.run(ledger.Target(proxy.http, "m"), plan)
    assert [str(one) for one in report.violations] == []
    async with penstock.AsyncClient(old.http) as client:
        assert (await client.infer("m", {"x": np.ones((1, 4))}))["y"].tolist() == [[3.0] * 4]
