"""Versions that name themselves in their answers, and traffic that checks it, over HTTP and gRPC."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc as triton

import penstock

PAUSE_S = 0.003  # between two requests of one client: the loads under test need the cores too

CODE = """
import asyncio, os, sys, time
import numpy as np, penstock

@penstock.model(inputs={{"x": "f4[n, 2]"}}, outputs={{"version": "f4[n, 1]", "pid": "i8[n]"}}{concurrency})
class Model:
    {how} predict(self, x):
        {wait}
        return {{"version": np.full((len(x), 1), {number}, "f4"), "pid": np.full(len(x), os.getpid())}}

{more}
"""


def code(number: int, kind: str = "process", more: str = "", wait_s: float = 0.0) -> str:
    """A Python model whose answer is its own version, as user code writes it: "process" or "asyncio"."""
    asynchronous = kind == "asyncio"
    wait = f"{'await asyncio' if asynchronous else 'time'}.sleep({wait_s})" if wait_s or asynchronous else "pass"
    return CODE.format(
        number=number, how="async def" if asynchronous else "def", wait=wait, more=more,
        concurrency=", concurrency=8" if asynchronous else "",
    )  # fmt: skip


def onnx_bytes(number: int, weights: int = 0) -> bytes:
    """A library model, fast enough to run inline; `weights` values of ballast make it as large as wished."""
    make = onnx.helper
    zero = onnx.numpy_helper.from_array(np.zeros((2, 1), "f4"), "zero")
    own = onnx.numpy_helper.from_array(np.array([number], "f4"), "own")
    ballast = onnx.numpy_helper.from_array(np.zeros(max(1, weights), "f4"), "ballast")
    graph = make.make_graph(
        [
            make.make_node("MatMul", ["x", "zero"], ["none"]),
            make.make_node("ReduceSum", ["ballast"], ["nothing"], keepdims=0),
            make.make_node("Add", ["none", "nothing"], ["still"]),
            make.make_node("Add", ["still", "own"], ["version"]),
        ],
        "made",
        [make.make_tensor_value_info("x", 1, ["n", 2])],
        [make.make_tensor_value_info("version", 1, ["n", 1])],
        [zero, own, ballast],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    model.ir_version = 9
    made: bytes = model.SerializeToString()
    return made


def add(folder: Path, number: int, kind: str = "process", *, more: str = "", wait_s: float = 0.0) -> None:
    """A version as a careful user adds it: written beside, then renamed, or linked into place."""
    store = folder / f".v{number}"
    store.mkdir(parents=True)
    if kind == "onnx":
        (store / "model.onnx").write_bytes(onnx_bytes(number))
    else:
        (store / "model.py").write_text(code(number, kind, more, wait_s))
    if number % 2:
        store.rename(folder / str(number))
    else:
        (folder / f".link{number}").symlink_to(store.name)
        (folder / f".link{number}").rename(folder / str(number))


def remove(folder: Path, number: int) -> None:
    """Takes a version away: out of sight in one step, then for good."""
    place, gone = folder / str(number), folder / f".gone{number}"
    place.rename(gone)
    if gone.is_symlink():
        shutil.rmtree(gone.resolve())
        gone.unlink()
    else:
        shutil.rmtree(gone)


def eventually(claim: Callable[[], bool], seconds: float = 30.0, what: str = "it did not come true") -> float:
    """The time until `claim` held, in seconds."""
    begun = time.monotonic()
    while not claim():
        assert time.monotonic() < begun + seconds, what
        time.sleep(0.005)
    return time.monotonic() - begun


def ask(running: Any, name: str, version: str = "") -> tuple[str, int, int]:
    """(version that the reply names, version that the model says, its process or 0)."""
    with penstock.Client(running.http, retries=0) as client:
        result = client.infer(name, {"x": np.ones((1, 2), "f4")}, version=version)
        named = result.outputs
        return result.version, int(named["version"][0, 0]), int(named["pid"][0]) if "pid" in named else 0


@dataclass
class Traffic:
    """What clients saw: answers by (model, version), everything wrong, and latencies by model, in seconds."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self, name: str, named: str, said: float, began: float) -> None:
        self.answers[name, named] += 1
        self.latencies_s.setdefault(name, []).append(time.monotonic() - began)
        if float(named) != said:
            self.wrong.append(f"{name}: the reply names version {named} and comes from {said:g}")


def _over_http(running: Any, name: str, traffic: Traffic) -> None:
    x = np.ones((1, 2), "f4")
    while not traffic.stop.is_set():
        with penstock.Client(running.http, retries=0) as client:  # a new connection now and then: another front
            for _ in range(100):
                if traffic.stop.is_set():
                    return
                began = time.monotonic()
                try:
                    result = client.infer(name, {"x": x})
                    traffic.check(name, result.version, float(result["version"][0, 0]), began)
                except Exception as error:
                    traffic.wrong.append(f"{name} over HTTP: {type(error).__name__}: {error}")
                time.sleep(PAUSE_S)


def _over_grpc(running: Any, name: str, traffic: Traffic) -> None:
    with contextlib.closing(triton.InferenceServerClient(running.grpc)) as client:
        tensor = triton.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 2), "f4"))
        while not traffic.stop.is_set():
            began = time.monotonic()
            try:
                result = client.infer(name, [tensor])
                traffic.check(name, result.get_response().model_version, float(result.as_numpy("version")[0, 0]), began)
            except Exception as error:
                traffic.wrong.append(f"{name} over gRPC: {type(error).__name__}: {error}")
            time.sleep(PAUSE_S)


@contextlib.contextmanager
def traffic_to(running: Any, *names: str) -> Iterator[Traffic]:
    """One HTTP and one gRPC client per model, for as long as the context lasts. At its end nothing was wrong."""
    traffic = Traffic()
    threads = [
        threading.Thread(target=over, args=(running, name, traffic))
        for name in names
        for over in (_over_http, _over_grpc)
    ]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        traffic.stop.set()
        for thread in threads:
            thread.join()
    assert traffic.wrong == []
