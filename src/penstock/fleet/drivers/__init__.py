"""Drivers start, list and stop replicas in one kind of place. The file's name is the driver's name.

Each module has `plug`, a class that is made with `Settings`. All methods run on the controller's loop and must not
block it.

An implementer owes:
1. `start` returns soon; how the replica comes up is seen by `replicas`. Starting the same id twice starts it once.
2. `replicas` reports all replicas of this fleet that are still there, also those that an earlier controller started
   (`adopt`), and those that failed until `forget` is called for them. It never reports one READY that has not said so.
3. `stop` lets requests in flight finish for `grace_s`, then ends the replica with all its processes. Idempotent.
4. `changed` is set whenever `replicas` would answer differently, within 100 ms of a death.
5. Replicas outlive the controller's death. `close` leaves them running; `stop` each to end them.
6. Secrets are read when a replica starts and written nowhere.
7. A replica loads what the launch's `content` says, or fails with a reason that tells what to do. Where that is empty
   it loads what it finds. `replicas` tells of either what it has loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from penstock.fleet.placement import Place
from penstock.fleet.spec import Run
from penstock.fleet.state import Replica


@dataclass(frozen=True, slots=True)
class Settings:
    """What every driver is told. `folder` is its own, under the fleet's state."""

    folder: Path
    fleet: str  # this fleet's id, to know its replicas again
    endpoints_url: str = ""  # where graphs and user code reach other endpoints: the router's HTTP address
    endpoints_key: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """One replica to start. `name` is the model's name in it: the deployment's."""

    id: str
    name: str
    revision: int
    run: Run
    place: str = ""
    gpu_shares: Mapping[int, float] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)  # of the revision, as `Replica.content`


class Driver(Protocol):
    changed: asyncio.Event

    async def adopt(self) -> Sequence[Replica]:
        """Finds what earlier controllers of this fleet left running. Called once, first."""
        ...

    async def places(self) -> Sequence[Place]: ...

    async def prepare(self, run: Run, content: Mapping[str, str] | None = None) -> None:
        """Makes what the run needs before any replica starts: its Python environment, its unpacked archive. Called
        before `start`; may take minutes; repeated calls for equal runs cost nothing. `content` is the revision's.

        Raises: LoadError: with the last lines of what failed."""
        ...

    async def start(self, launch: Launch) -> None: ...

    async def stop(self, id: str, grace_s: float) -> None:
        """Returns once the replica is asked to stop; it is gone from `replicas` when it ended."""
        ...

    def forget(self, id: str) -> None:
        """A failed replica need not be reported any more."""
        ...

    def release(self, deployment: str) -> None:
        """A deployment was deleted: what is kept ready for it may go."""
        ...

    def replicas(self) -> Sequence[Replica]: ...

    async def gone(self, deployment: str) -> Sequence[Replica]:
        """Replicas that are no longer reported and whose output can still be read, the newest last."""
        ...

    def logs(self, id: str, lines: int, follow: bool) -> AsyncIterator[str]:
        """The last lines of a replica's output, and further ones while it lives. Raises: NotFound."""
        ...

    async def close(self) -> None: ...
