"""A controller over replicas in memory, moved by hand: the clock, the replicas and one router are the test's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from penstock import plugins
from penstock.fleet import spec
from penstock.fleet.controller.loop import Controller
from penstock.fleet.controller.routing import Choice, endpoint
from penstock.fleet.controller.view import View
from penstock.fleet.drivers import Settings
from penstock.fleet.drivers.memory import MemoryDriver, World
from penstock.fleet.routes import Endpoint, Load, Report
from penstock.fleet.state import Replica, ReplicaState
from penstock.fleet.store.records import Record
from penstock.fleet.store.store import Store

T = TypeVar("T")
START = 1_000_000.0


class MemoryFleet:
    """`async with MemoryFleet(folder) as fleet`. Deployments act when `step` or `settle` is called."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder / 'fleet.db'}"
        self.now = START
        self.world = World(now=lambda: self.now)
        self.load: dict[str, tuple[float, int]] = {}  # concurrency and waiting, by deployment
        self.store: Store
        self.controller: Controller
        self.driver: MemoryDriver

    async def __aenter__(self) -> MemoryFleet:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self.store = Store(self.url)
        self.driver = MemoryDriver(Settings(self.folder, self.store.fleet_id), self.world)
        placement = plugins.load("penstock.fleet.placement", "pack")
        self.controller = Controller(self.store, self.driver, placement, lambda: self.now)  # type: ignore[arg-type]
        await self.controller.open()

    async def stop(self) -> None:
        await self.controller.close()
        self.store.close()

    async def restart(self) -> None:
        """As after a kill: only the store and the replicas are left."""
        await self.stop()
        await self.start()

    async def deploy(self, name: str, **document: object) -> int:
        applied = await self.change(self.store.apply, spec.read(name, document), self.now)
        return applied.revision

    async def change(self, function: Callable[..., T], *arguments: object) -> T:
        """What the HTTP API does."""
        return await self.controller.change(function, *arguments)

    async def step(self, seconds: float = 0.0) -> None:
        """One look of the controller, after some time; the router speaks before and has each table at once."""
        self.now += seconds
        loads = tuple(Load(name, 0, running, 0, 0.0, held) for name, (running, held) in self.load.items())
        await self.controller.report(Report("router", self.controller.tables.version, max(seconds, 0.01), loads))
        await self.controller.step(self.now)
        await self.controller.report(Report("router", self.controller.tables.version, 0.01, loads))
        for _ in range(8):  # let tasks run that wait for the router, or prepare
            await asyncio.sleep(0)

    async def settle(self, seconds: float = 6.0, every: float = 0.5) -> None:
        """Looks every 0.5 s for so long."""
        for _ in range(math.ceil(seconds / every)):
            await self.step(every)

    def come_up(self) -> None:
        """Every replica that starts, of a model that is not "starting" for ever, is ready."""
        for replica in self.driver.replicas():
            if replica.state is ReplicaState.STARTING and not self.world.runs[replica.id].model.endswith("hanging"):
                self.driver.set_ready(replica.id)

    # What is

    def view(self, name: str = "m") -> View:
        return self.controller.views()[name]

    def record(self, name: str = "m") -> Record:
        return self.view(name).record

    def endpoint(self, name: str = "m") -> Endpoint:
        found = endpoint(self.view(name), Choice())
        assert found is not None
        return found

    def weights(self, name: str = "m") -> dict[int, float]:
        return {arm.revision: arm.weight for arm in self.endpoint(name).arms}

    def serving(self, name: str = "m") -> dict[int, int]:
        """Replicas in the table, by revision."""
        return {arm.revision: len(arm.upstreams) for arm in self.endpoint(name).arms if arm.weight > 0}

    def phase(self, number: int, name: str = "m") -> str:
        revision = self.record(name).find(number)
        assert revision is not None
        return revision.phase.value

    def reason(self, number: int, name: str = "m") -> str:
        revision = self.record(name).find(number)
        assert revision is not None
        return revision.reason

    def replicas(self, revision: int | None = None, state: str | None = None) -> list[Replica]:
        return [
            one
            for one in self.driver.replicas()
            if (revision is None or one.revision == revision) and (state is None or one.state == state)
        ]
