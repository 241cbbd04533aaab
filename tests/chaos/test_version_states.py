"""F16: infer, cancel, load, unload, switch, break and kill in any order, on the real manager with real workers.

The machine keeps its own book of what it wished. After each step, and at the end, the manager must agree with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from versions_under_load import code, onnx_bytes

from penstock.core.errors import NotFound, NotReady, WorkerLost
from penstock.core.messages import Request, Response
from penstock.runtime.inference import Inference
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources import WishedModel, WishedVersion
from penstock.runtime.version import LoadedVersion
from penstock.telemetry.metrics import Metrics

T = TypeVar("T")
ADAPTERS = {"workers": "python", "inline": "onnx"}
NAMES = st.sampled_from(sorted(ADAPTERS))
NUMBERS = st.integers(1, 4)
BROKEN = {"workers": ("model.py", b"raise RuntimeError('broken')"), "inline": ("model.onnx", b"broken")}


class Versions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.manager: Manager
        self.run(self._begin())
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-states-"))
        self.wished: dict[str, WishedModel] = {}
        self.bad: set[tuple[str, int]] = set()
        self.serial = 0
        self.asked: list[tuple[str, asyncio.Future[Response]]] = []
        self.seen: set[LoadedVersion] = set()
        self.killed = False

    async def _begin(self) -> None:
        self.manager = Manager(Metrics({}), 2)
        self.manager.started = True
        self.inference = Inference()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(60.0):
                return await work

        return self.loop.run_until_complete(bounded())

    def _offer(self, name: str, number: int, good: bool) -> None:
        self.serial += 1
        place = self.folder / f"{name}-{number}-{self.serial}"
        place.mkdir()
        if not good:
            file, content = BROKEN[name]
            (place / file).write_bytes(content)
        elif name == "inline":
            (place / "model.onnx").write_bytes(onnx_bytes(number))
        else:
            (place / "model.py").write_text(code(number, wait_s=0.005))
        path = place if name == "workers" else place / "model.onnx"
        before = self.wished.get(name)
        versions = dict(before.versions if before else {})
        versions[number] = WishedVersion(number, path, str(self.serial))
        options = ModelOptions(
            name=name, path=str(path), versions="latest:2" if number % 2 else "latest:1", keep_previous_s=0.2,
            load_timeout_s=30.0, timeout_s=20.0, executor="inline" if name == "inline" else "process",
        )  # fmt: skip
        self.wished[name] = WishedModel(options, ADAPTERS[name], versions)
        (self.bad.discard if good else self.bad.add)((name, number))

    async def _apply(self) -> None:
        self.manager.apply(dict(self.wished))

    @rule(name=NAMES, number=NUMBERS, good=st.sampled_from([True, True, True, False]))
    def load(self, name: str, number: int, good: bool) -> None:
        self._offer(name, number, good)
        self.run(self._apply())

    @rule(name=NAMES, number=NUMBERS)
    def withdraw_version(self, name: str, number: int) -> None:
        model = self.wished.get(name)
        if model is not None and number in model.versions and len(model.versions) > 1:
            kept = {other: version for other, version in model.versions.items() if other != number}
            self.wished[name] = WishedModel(model.options, model.adapter, kept)
            self.run(self._apply())

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.wished.pop(name, None)
        self.run(self._apply())

    @rule(name=NAMES)
    def load_again(self, name: str) -> None:
        async def again() -> None:
            self.manager.forget_failure(name)
            self.manager.touch(name)
            self.manager.apply(dict(self.wished))

        self.run(again())

    @rule(name=NAMES, count=st.integers(1, 20), version=st.sampled_from(["", "", "1", "3"]))
    def infer(self, name: str, count: int, version: str) -> None:
        async def ask() -> None:
            for _ in range(count):
                try:
                    loaded = self.manager.find(name, version)
                except (NotFound, NotReady):
                    assert version != "" or name not in self.manager.names()
                    continue
                assert loaded.number == int(version or loaded.number)
                request = Request(name, {"x": np.ones((1, 2), "f4")}, version)
                self.asked.append((version, self.inference.submit(loaded, request)))
            await asyncio.sleep(0)

        self.run(ask())

    @rule(share=st.integers(1, 5))
    def cancel(self, share: int) -> None:
        async def leave() -> None:
            for _, future in self.asked[::share]:
                future.cancel()
            await asyncio.sleep(0)

        self.run(leave())

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(name=NAMES)
    def settle(self, name: str) -> None:
        self.run(self.manager.settled(name))

    @precondition(lambda self: self.manager.names())
    @rule(name=NAMES)
    def kill_a_worker(self, name: str) -> None:
        for loaded in self.manager.loaded():
            if loaded.name == name and loaded.pool is not None and loaded.pool.workers:
                os.kill(loaded.pool.workers[0].pid, signal.SIGKILL)
                self.killed = True
                return

    @invariant()
    def what_is_found_is_ready_and_open(self) -> None:
        for (name, text), loaded in self.manager.table().items():
            self.seen.add(loaded)
            assert not loaded.closing
            assert loaded.name == name
            assert text in ("", str(loaded.number))
            assert loaded.pool is not None or loaded.inline is not None
        for status in self.manager.index():
            found = (status.name, status.version) in self.manager.table()
            assert found == (status.state == "READY"), status

    def teardown(self) -> None:
        try:
            self.run(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        manager = self.manager
        if self.asked:
            await asyncio.wait([future for _, future in self.asked], timeout=30.0)
        for version, future in self.asked:
            assert future.done(), "a request without an outcome"
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                response = future.result()
                said = float(response.outputs["version"][0, 0])
                assert said == float(response.version)
                assert version in ("", response.version)
            else:
                assert isinstance(error, WorkerLost) if self.killed else False, repr(error)
        await manager.settled()
        for name, model in self.wished.items():
            good = [number for number in model.versions if (name, number) not in self.bad]
            newest = max(model.versions)
            if newest in good:
                assert manager.find(name, "").number == newest, manager.index()
        manager.apply({})
        await manager.settled()
        assert manager.known() == []
        await manager.close(5.0)
        for loaded in self.seen:
            assert loaded.closing
            assert loaded.batcher.in_flight == 0
            assert loaded.batcher.queued == 0
            assert loaded.inline is None or loaded.inline.exited
            for worker in loaded.pool.workers if loaded.pool is not None else []:
                assert worker.exited
        assert manager._occupancy.busy == 0
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(4, 14), pytest.param(150, 40, marks=[pytest.mark.chaos, pytest.mark.timeout(3000)])],
    ids=["some", "many"],
)
def test_any_order_of_loads_unloads_and_requests_keeps_the_rules(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Versions,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=examples < 10,
            suppress_health_check=list(HealthCheck), database=None, print_blob=True,
        ),
    )  # fmt: skip
