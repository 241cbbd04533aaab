"""P8: user code stays out of the front processes, and what one model does hardly moves another one's answers."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from versions_under_load import add, eventually, onnx_bytes

import penstock
from penstock.core.errors import PenstockError

Factory = Callable[..., Any]
Figure = Callable[..., None]
X = {"x": np.ones((1, 2), "f4")}

WRITES_ITS_PIDS = """
import os, sys
import numpy as np, penstock

def note(when):
    with open({file!r}, "a") as file:
        file.write(f"{{when}} {{os.getpid()}} {{os.getppid()}}\\n")

note("import")

@penstock.model(inputs={{"x": "f4[n, 2]"}}, outputs={{"y": "f4[n, 2]"}})
class Model:
    def load(self, context):
        note("load")

    def {how}predict(self, x):
        note("predict")
        return {{"y": x}}

    def close(self):
        note("close")
"""


def test_user_code_never_runs_in_a_front_process(server: Factory, tmp_path: Path) -> None:
    """P8a: not when models are recognised, loaded, warmed, asked, described, replaced or unloaded."""
    notes = tmp_path / "notes"
    source = WRITES_ITS_PIDS.format(file=str(notes), how="")
    add(tmp_path / "models" / "m", 1)
    (tmp_path / "models" / "m" / "1" / "model.py").write_text(source)
    running = server({}, serve=[str(tmp_path / "models")], fronts=3, poll_s=0.1)
    for _ in range(12):  # over every front
        with penstock.Client(running.http) as client:
            client.infer("m", X)
            client.metadata("m")
            client.index()
    (tmp_path / "models" / "m" / ".2").mkdir()
    (tmp_path / "models" / "m" / ".2" / "model.py").write_text(source)
    (tmp_path / "models" / "m" / ".2").rename(tmp_path / "models" / "m" / "2")
    with penstock.Client(running.http) as client:
        eventually(lambda: client.infer("m", X).version == "2")
    children = Path(f"/proc/{running.pid}/task").glob("*/children")
    fronts = {
        pid
        for file in children
        for pid in file.read_text().split()
        if "penstock.runtime.fronts" in Path(f"/proc/{pid}/cmdline").read_text()
    } | {str(running.pid)}
    assert len(fronts) == 3
    assert running.stop() == 0
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert {when for when, _, _ in lines} >= {"import", "load", "predict"}
    assert not {pid for _, pid, _ in lines} & fronts
    assert {parent for _, _, parent in lines} == {str(running.pid)}  # each is a worker, none a fork of a front


class Fast:
    """Asks the fast model without a pause, and keeps the times of a window."""

    def __init__(self, running: Any) -> None:
        self.client = penstock.Client(running.http)

    def window(self, seconds: float) -> tuple[float, float]:
        """(median, p99) of the answers in a window, in seconds."""
        times: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            self.client.infer("fast", X)
            times.append(time.monotonic() - began)
            time.sleep(0.002)
        return statistics.median(times), statistics.quantiles(times, n=100)[98]


def compared(fast: Fast, windows: int, seconds: float, during: Callable[[], Any]) -> tuple[float, float]:
    """Median over pairs of windows of the ratio with `during` to without, of the medians and of the p99s. Taken in
    turns, so that a machine that is busy for a while is busy for both."""
    medians: list[float] = []
    tails: list[float] = []
    fast.window(seconds)
    for turn in range(windows):
        if turn % 2:
            with during():
                loud = fast.window(seconds)
            quiet = fast.window(seconds)
        else:
            quiet = fast.window(seconds)
            with during():
                loud = fast.window(seconds)
        medians.append(loud[0] / quiet[0])
        tails.append(loud[1] / quiet[1])
    return statistics.median(medians), statistics.median(tails)


@pytest.mark.parametrize(
    ("windows", "seconds"),
    [(2, 0.7), pytest.param(9, 5.0, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])],
    ids=["short", "long"],
)
def test_a_handler_that_sleeps_for_ever_changes_no_other_models_latency(
    server: Factory, tmp_path: Path, figure: Figure, windows: int, seconds: float
) -> None:
    """P8c."""
    add(tmp_path / "fast", 1)
    add(tmp_path / "sleeps", 1, wait_s=1e9)
    running = server(
        {
            "fast": str(tmp_path / "fast"),
            "sleeps": {"path": str(tmp_path / "sleeps"), "warm_up": False, "hang_s": 3600.0, "max_queue": 64},
        },
        grace_s=0.5,
    )
    fast = Fast(running)

    @contextlib.contextmanager
    def stuck() -> Iterator[None]:
        """Thirty callers wait for the one that sleeps; they leave at the end, the handler does not."""

        def ask() -> None:
            with contextlib.suppress(PenstockError), penstock.Client(running.http, retries=0) as client:
                client.infer("sleeps", X, timeout_s=seconds + 0.2)

        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)  # the callers themselves are busy while they connect
        yield
        for thread in threads:
            thread.join()

    median, tail = compared(fast, windows, seconds, stuck)
    figure("P8c", "median of a model beside one that sleeps for ever, to alone", round(median, 3), "×", goal="≤ 1.05")
    figure("P8c", "p99 of a model beside one that sleeps for ever, to alone", round(tail, 3), "×", goal="≤ 1.05")
    assert median < (2.0 if windows < 5 else 1.25)


@pytest.mark.parametrize(
    ("windows", "seconds", "megabytes"),
    [
        pytest.param(8, 2.0, 200, marks=[pytest.mark.chaos, pytest.mark.timeout(300)]),
        pytest.param(7, 10.0, 1900, marks=[pytest.mark.chaos, pytest.mark.timeout(600)]),
    ],
)
def test_loading_and_unloading_a_big_model_hardly_moves_anothers_latency(
    server: Factory, tmp_path: Path, figure: Figure, windows: int, seconds: float, megabytes: int
) -> None:
    """P8b. The weights are zeros on a disk, hashed by the server and read by the worker."""
    add(tmp_path / "fast", 1)
    big = tmp_path / "big" / "1"
    big.mkdir(parents=True)
    (big / "model.onnx").write_bytes(onnx_bytes(1, weights=megabytes * 250_000))
    running = server(
        {"fast": str(tmp_path / "fast"), "big": {"path": str(tmp_path / "big"), "executor": "process", "workers": 1}},
        model_control="explicit", load_models=["fast"],
    )  # fmt: skip
    fast = Fast(running)
    loads = 0

    @contextlib.contextmanager
    def loading() -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            nonlocal loads
            with penstock.Client(running.http, timeout_s=120.0) as client:
                while not stop.is_set():
                    client.load("big")
                    client.unload("big")
                    loads += 1

        thread = threading.Thread(target=work)
        thread.start()
        yield
        stop.set()
        thread.join()

    try:
        median, tail = compared(fast, windows, seconds, loading)
    finally:
        (big / "model.onnx").unlink()
    assert loads >= 2
    size = f"{megabytes} MB"
    figure("P8b", f"median of a model while one of {size} is loaded, to alone", round(median, 3), "×", goal="≤ 1.1")
    figure("P8b", f"p99 of a model while one of {size} is loaded, to alone", round(tail, 3), "×", goal="≤ 1.1")
    assert median < 4.0
