"""A gRPC listener in front of a door over plain functions, for tests that drive it with real clients."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy_door import NumpyDoor, NumpyModel, numpy_model
from tritonclient.utils import InferenceServerException

from penstock.core.tensor import TensorSpec
from penstock.protocols.v2_grpc import plug
from penstock.runtime.listeners.grpc import GrpcListener, GrpcOptions

SECONDS = 10.0  # until a state that a test waits for must be there


def double(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * 2}


def same(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def fails(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    raise ValueError("the model's own fault")


def counts(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    for number in range(int(inputs["n"].ravel()[0])):
        yield {"i": np.array([[number]], dtype="i4")}


def endless(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield {"i": np.zeros((1, 1), dtype="i4")}


def models() -> dict[str, NumpyModel]:
    labelled = TensorSpec("y", "FP32", (-1, -1), labels=("cat", "dog", "cow"))
    served = {
        "double": numpy_model({"x": "f4[n, k]"}, {"y": labelled}, predict=double),
        "gated": numpy_model({"x": "f4[n, k]"}, {"y": "f4[n, k]"}, predict=double, gate=asyncio.Event()),
        "broken": numpy_model({"x": "f4[n, k]"}, {"y": "f4[n, k]"}, predict=fails),
        "counter": numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, 1]"}, answer=counts),
        "endless": numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, 1]"}, answer=endless),
    }
    for datatype in ("bool", "i1", "i8", "u2", "u8", "f2", "f8", "bf2", "bytes"):
        served[f"same_{datatype}"] = numpy_model({"x": f"{datatype}[n, k]"}, {"y": f"{datatype}[n, k]"}, predict=same)
    return served


class Serving:
    """A listener on a loop of its own thread, so that blocking clients can be driven from the test."""

    def __init__(self, options: GrpcOptions, door: Callable[[], NumpyDoor]) -> None:
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._make_door = door
        self._options = options
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        uvloop = pytest.importorskip("uvloop")
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        try:
            self.door = self._make_door()
            self.listener = GrpcListener(self.door, [plug], self._options)
            self.address = f"127.0.0.1:{await self.listener.start('127.0.0.1', 0)}"
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._started.set()
        await self._end.wait()
        await self.listener.stop(0.0)

    def __enter__(self) -> Serving:
        self._thread.start()
        self._started.wait(SECONDS)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on the listener's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(SECONDS)

    def until(self, claim: Callable[[], object]) -> None:
        """Waits until `claim` is true on the listener's loop."""

        async def poll() -> None:
            async with asyncio.timeout(SECONDS):
                while not claim():  # noqa: ASYNC110  # what is claimed tells no changes
                    await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(poll(), self.loop).result(SECONDS + 1)

    def stop(self, grace_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(self.listener.stop(grace_s), self.loop)


def serving(options: GrpcOptions | None = None, door: Callable[[], NumpyDoor] | None = None) -> Serving:
    return Serving(options or GrpcOptions(), door or (lambda: NumpyDoor(models())))


def tensor(array: np.ndarray, datatype: str = "FP32", name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


X = np.arange(6, dtype="f4").reshape(2, 3)
INFER = f"/{plug.service}/ModelInfer"


def raw_request(array: np.ndarray, model: str = "double", **fields: Any) -> bytes:
    request = triton.service_pb2.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name="x", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    data: bytes = request.SerializeToString()
    return data


def stream_of(
    address: str, **options: Any
) -> tuple[triton.InferenceServerClient, queue.Queue[tuple[Any, InferenceServerException | None]]]:
    client = triton.InferenceServerClient(address)
    answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), **options)
    return client, answers


N = np.array([[3]], dtype="i4")


@asynccontextmanager
async def on_this_loop(**options: Any) -> AsyncIterator[tuple[NumpyDoor, str]]:
    door = NumpyDoor(models())
    listener = GrpcListener(door, [plug], GrpcOptions(**options))
    port = await listener.start("127.0.0.1", 0)
    try:
        yield door, f"127.0.0.1:{port}"
    finally:
        await listener.stop(0.0)
