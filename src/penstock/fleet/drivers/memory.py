"""Replicas that exist in memory only, and do what a script says: the twin of real drivers, for tests and dry trials.

A replica is STARTING until its revision's behaviour lets it be ready. Nothing answers at its address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from penstock.core.errors import LoadError, NotFound
from penstock.fleet.drivers import Launch, Settings
from penstock.fleet.placement import Place
from penstock.fleet.spec import Run
from penstock.fleet.state import Replica, ReplicaState

GIB = 1 << 30


@dataclass(slots=True)
class World:
    """What outlives a controller: the replicas, and how those of each model behave. Give it to the next driver to act
    as one that starts later.

    `behaviour` gives for a model's path how its replicas begin: "ready", "starting" (until `set_ready`), "failing", or
    "unpreparable"; other paths are ready at once.
    """

    replicas: dict[str, Replica] = field(default_factory=dict)
    behaviour: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    content: dict[str, Mapping[str, str]] = field(default_factory=dict)  # what is at a model's path now
    released: list[str] = field(default_factory=list)  # deployments
    gone: list[Replica] = field(default_factory=list)
    lingering: bool = False  # a stopped replica stays DRAINING until `end`
    started: int = 0
    now: Callable[[], float] = time.time


class MemoryDriver:
    """See `drivers.Driver` for what it owes."""

    def __init__(self, settings: Settings, world: World | None = None) -> None:
        self.changed = asyncio.Event()
        self.world = world or World()
        self.place = Place("memory", 1e6, 1 << 50, 0)

    async def adopt(self) -> Sequence[Replica]:
        return self.replicas()

    async def places(self) -> Sequence[Place]:
        return (self.place,)

    async def prepare(self, run: Run, content: Mapping[str, str] | None = None) -> None:
        if self.world.behaviour.get(run.model) == "unpreparable":
            raise LoadError(f"cannot prepare {run.model}")

    async def start(self, launch: Launch) -> None:
        if launch.id in self.world.replicas:
            return
        world = self.world
        world.started += 1
        world.runs[launch.id] = launch.run
        found = world.content.get(launch.run.model, {})
        world.replicas[launch.id] = Replica(
            launch.id, launch.name, launch.revision, ReplicaState.STARTING, started_at=world.now(), place=launch.place,
            content=found,
        )  # fmt: skip
        if launch.content and found != launch.content:
            self.fail(launch.id, "its files are no longer those that this revision was made of")
        behaviour = world.behaviour.get(launch.run.model, "ready")
        if behaviour == "ready":
            self.set_ready(launch.id)
        elif behaviour == "failing":
            self.fail(launch.id, "it ends by itself")
        self.changed.set()

    def set_ready(self, id: str) -> None:
        """What a starting replica does by itself, once it is told."""
        replica = self.world.replicas[id]
        if replica.state is ReplicaState.STARTING:
            port = 10_000 + self.world.started % 50_000
            self.world.replicas[id] = replace(
                replica, state=ReplicaState.READY, http=f"127.0.0.1:{port}", ready_at=self.world.now()
            )
            self.changed.set()

    def fail(self, id: str, reason: str) -> None:
        """A replica that ends unasked."""
        if (replica := self.world.replicas.get(id)) is not None:
            self.world.replicas[id] = replace(replica, state=ReplicaState.FAILED, reason=reason)
            self.changed.set()

    def end(self, id: str) -> None:
        """A draining replica that has ended."""
        replica = self.world.replicas.pop(id, None)
        if replica is not None:
            self.world.gone.append(replica)
            self.changed.set()

    async def stop(self, id: str, grace_s: float) -> None:
        replica = self.world.replicas.get(id)
        if replica is None or replica.state is ReplicaState.FAILED:
            return
        if self.world.lingering:
            self.world.replicas[id] = replace(replica, state=ReplicaState.DRAINING)
            self.changed.set()
        else:
            self.end(id)

    def forget(self, id: str) -> None:
        replica = self.world.replicas.get(id)
        if replica is not None and replica.state is ReplicaState.FAILED:
            self.world.gone.append(self.world.replicas.pop(id))

    def release(self, deployment: str) -> None:
        self.world.released.append(deployment)

    def replicas(self) -> Sequence[Replica]:
        return tuple(self.world.replicas.values())

    async def gone(self, deployment: str) -> Sequence[Replica]:
        return [one for one in self.world.gone if one.deployment == deployment]

    async def logs(self, id: str, lines: int, follow: bool) -> AsyncIterator[str]:
        if id not in {*self.world.replicas, *(one.id for one in self.world.gone)}:
            raise NotFound(f"there is no replica {id}")
        yield f"{id} runs in memory"

    async def close(self) -> None:
        pass


plug = MemoryDriver
