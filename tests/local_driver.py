"""What tests of the local driver share: drivers on folders of their own, models, and calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest_asyncio

from penstock.fleet.drivers import Launch, Settings
from penstock.fleet.drivers.local import Local
from penstock.fleet.local import groups, process
from penstock.fleet.spec import Run
from penstock.fleet.state import Replica, ReplicaState

PATIENCE_S = 40.0

MODELS = '''
import os, signal, subprocess, sys, time
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def double(x):
    return {"y": x * 2}

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def gated(x):
    open(os.environ["GATE"] + ".reached", "w").close()
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    return {"y": x}

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def hungry(x):
    held = [b"x" * (1 << 20) for _ in range(int(x[0]))]
    return {"y": x * len(held)}

class Environment:
    """Answers 1 when the variable SECRET_WORD has the value that a test expects."""
    def load(self, artifact, context):
        self.value = os.environ.get("SECRET_WORD", "")
    def predict(self, inputs):
        import numpy
        return {"y": numpy.array([self.value, os.environ.get("OF_CONTROLLER", "unset")], dtype=object)[None]}

class Parent:
    """Starts a process that outlives it, and hears no SIGTERM."""
    def load(self, artifact, context):
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    def predict(self, inputs):
        return inputs

class Broken:
    def load(self, artifact, context):
        raise ValueError("there are no weights")
    def predict(self, inputs):
        return inputs

class Talker:
    def load(self, artifact, context):
        print("loaded and talking", flush=True)
    def predict(self, inputs):
        return inputs
'''


class Fleet:
    """Drivers over one folder: `driver` is the present one, `next` drops it and makes another, as a new controller."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.models = folder / "models.py"
        self.environ = environ
        self.settings = Settings(folder / "state", f"test-{os.getpid()}-{time.monotonic_ns()}")
        self.driver = Local(self.settings, environ)

    async def next(self) -> Local:
        await self.driver.close()
        self.driver = Local(self.settings, self.environ)
        return self.driver

    def run(self, model: str, **more: object) -> Run:
        return Run(model=f"{self.models}:{model}", **more)  # type: ignore[arg-type]

    async def start(self, id: str, model: str, **more: object) -> Replica:
        """A ready replica."""
        await self.driver.start(Launch(id, "deployed", 1, self.run(model, **more)))
        return await self.until(id, ReplicaState.READY)

    async def start_gated(self, id: str) -> tuple[Path, asyncio.Task[list[object]]]:
        """A replica with a request in flight, which is answered once the file exists that is given back."""
        gate = self.folder / f"{id}.gate"
        ready = await self.start(id, "gated", env={"GATE": str(gate)}, options={"warm_up": False})
        answer = asyncio.create_task(asyncio.to_thread(infer, ready, 2.0))
        await eventually(gate.with_name(gate.name + ".reached").exists, "the request is in the model")
        return gate, answer

    def replica(self, id: str) -> Replica | None:
        return next((one for one in self.driver.replicas() if one.id == id), None)

    async def until(self, id: str, state: ReplicaState | None) -> Replica:
        """The replica once it is in a state; with None, when it is gone. Told of it by `changed`, as a controller is."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self.driver.changed.clear()
                one = self.replica(id)
                if (None if one is None else one.state) == state:
                    return one or Replica(id, "", 0, ReplicaState.FAILED)
                if one is not None and one.state is ReplicaState.FAILED:
                    raise AssertionError(f"{id} failed: {one.reason}")
                await self.driver.changed.wait()

    def processes(self, id: str = "") -> list[int]:
        """All that runs for a replica, or for any."""
        prefix = f"{self.settings.fleet}:{id}"
        return [pid for pid, _ in process.carriers(prefix) if process.identity(pid) is not None]

    async def end(self) -> None:
        for one in self.driver.replicas():
            await self.driver.stop(one.id, 0.0)
        await eventually(lambda: not self.processes(), "every process of the fleet has ended")
        states = (ReplicaState.FAILED,)
        await eventually(lambda: all(one.state in states for one in self.driver.replicas()), "the driver has seen it")
        await self.driver.close()
        assert not groups.leftovers(f"penstock.{self.settings.fleet}."), "control groups are left"


@pytest_asyncio.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Fleet]:
    environ = {**os.environ, "WORD": "sesame-from-the-controller", "OF_CONTROLLER": "leaked", "PENSTOCK_HTTP_PORT": "1"}
    made = Fleet(tmp_path, environ)
    made.models.write_text(MODELS)
    try:
        yield made
    finally:
        await made.end()


async def eventually(holds: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    by = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < by, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)


def infer(replica: Replica, *values: float) -> list[object]:
    """What the replica answers to these values."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values)], "data": list(values)}]}
    request = urllib.request.Request(
        f"http://{replica.http}/v2/models/{replica.deployment}/infer",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with contextlib.closing(urllib.request.urlopen(request, timeout=PATIENCE_S)) as answer:
        return json.load(answer)["outputs"][0]["data"]
