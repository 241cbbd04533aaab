"""Where a library model runs: inline when it is fast, in workers when it is not, and moved when it turns out slow."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from penstock.core.errors import InvalidInput
from penstock.core.messages import Request
from penstock.runtime.inference import Inference
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources.memory import MemorySource
from penstock.telemetry.metrics import Metrics

onnx = pytest.importorskip("onnx")

Factory = Callable[..., Any]
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"


def convolution(path: Path) -> None:
    """A small convolution over images of any size: microseconds for one pixel, milliseconds for a real image."""
    kernel = np.random.default_rng(0).standard_normal((16, 3, 7, 7)).astype("f4")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[3, 3, 3, 3]),
            onnx.helper.make_node("GlobalAveragePool", ["c"], ["y"]),
        ],
        "convolution",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 16, 1, 1])],
        [onnx.numpy_helper.from_array(kernel, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


def executor(client: penstock.Client, model: str) -> str:
    parameters: Any = client.config(model)["parameters"]
    return str(parameters["executor"]["string_value"])


def test_model_that_turns_out_slow_moves_to_workers_and_loses_no_request(server: Factory, tmp_path: Path) -> None:
    convolution(tmp_path / "conv.onnx")
    running = server({"conv": str(tmp_path / "conv.onnx")})
    with penstock.Client(running.http, retries=0) as client:
        assert executor(client, "conv") == "inline"
        image = np.random.default_rng(1).random((1, 3, 224, 224), dtype="f4")
        first = client.infer("conv", {"x": image})["y"]
        end = time.monotonic() + 20
        while executor(client, "conv") == "inline":
            np.testing.assert_allclose(client.infer("conv", {"x": image})["y"], first, rtol=1e-4, atol=1e-5)
            assert time.monotonic() < end
        np.testing.assert_allclose(client.infer("conv", {"x": image})["y"], first, rtol=1e-4, atol=1e-5)


def test_executor_is_as_told(server: Factory) -> None:
    running = server(
        {
            "auto": str(DIGITS),
            "inline": {"path": str(DIGITS), "executor": "inline"},
            "process": {"path": str(DIGITS), "executor": "process"},
            "workers": {"path": str(DIGITS), "workers": 2},
        }
    )
    image = np.linspace(0, 16, 64, dtype="f4").reshape(1, 64)
    with penstock.Client(running.http) as client:
        found = {name: executor(client, name) for name in ("auto", "inline", "process", "workers")}
        assert found == {"auto": "inline", "inline": "inline", "process": "process", "workers": "process"}
        answers = [client.infer(name, {"image": image}) for name in found]
    for name in answers[0]:
        for other in answers[1:]:
            np.testing.assert_array_equal(other[name], answers[0][name])


def test_fronts_hold_inline_models_themselves_and_every_request_is_counted(server: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "digits"
    (folder / "1").mkdir(parents=True)
    shutil.copy(DIGITS, folder / "1" / "model.onnx")
    running = server({"digits": str(folder)}, fronts=3, poll_s=0.1)
    images = np.random.default_rng(0).random((60, 64), dtype="f4") * 16

    def ask(number: int) -> tuple[str, list[float]]:
        with penstock.Client(running.http, retries=0) as client:  # a new connection: the kernel picks a front
            result = client.infer("digits", {"image": images[number : number + 1]})
            return result.version, result["probabilities"].ravel().tolist()

    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    holds_it = [pid for pid in children if "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()]
    assert len(holds_it) == 2  # the extra fronts; the first one is the server's own process
    first = [ask(number) for number in range(60)]
    assert {version for version, _ in first} == {"1"}
    with penstock.Client(running.http) as client:
        (statistics,) = client.statistics("digits")
        assert (statistics.inference_count, statistics.success.count) == (60, 60)
        for _ in range(30):
            with penstock.Client(running.http, retries=0) as other, pytest.raises(InvalidInput):
                other.infer("digits", {"image": images[:1].astype("f8")})
    hidden = folder / ".2"
    hidden.mkdir()
    shutil.copy(DIGITS, hidden / "model.onnx")
    hidden.rename(folder / "2")
    end = time.monotonic() + 20
    while {ask(number)[0] for number in range(20)} != {"2"}:
        assert time.monotonic() < end
    assert [answer for _, answer in map(ask, range(60))] == [answer for _, answer in first]
    assert running.stop() == 0


async def test_slow_model_leaves_inline_after_a_shortage_that_kept_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    convolution(tmp_path / "conv.onnx")
    manager = Manager(Metrics(), 2)
    manager.apply(MemorySource([ModelOptions(name="conv", path=str(tmp_path / "conv.onnx"))]).poll())
    await manager.settled()
    loaded, inference = manager.find("conv", ""), Inference()
    assert loaded.executor == "inline"
    image = np.random.default_rng(1).random((1, 3, 224, 224), dtype="f4")

    async def ask_until(claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(25):
            while not claim():
                await inference.submit(loaded, Request("conv", {"x": image}))
                await asyncio.sleep(0.005)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await ask_until(lambda: "leaving_inline_failed" in caplog.messages)
        assert loaded.executor == "inline"
        await ask_until(lambda: loaded.executor == "process")
        await inference.submit(loaded, Request("conv", {"x": image}))
    finally:
        await manager.close(5)
