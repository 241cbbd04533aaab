"""Carries out what `reconcile` planned, with the driver and the store. On the controller's loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

from penstock.core.errors import PenstockError
from penstock.fleet.controller.tables import Tables
from penstock.fleet.controller.view import (
    Action,
    Begin,
    Forget,
    Prepare,
    Remove,
    Retire,
    SetPhase,
    Start,
    Stop,
    Switch,
    Trouble,
)
from penstock.fleet.drivers import Driver, Launch
from penstock.fleet.placement import Policy, Taken
from penstock.fleet.spec import Run
from penstock.fleet.state import Replica, ReplicaState
from penstock.fleet.store.records import Record
from penstock.fleet.store.store import Store

log = logging.getLogger("penstock.controller")

Key = tuple[str, int]
T = TypeVar("T")
# What could not be prepared may be possible later: a full disk, a package index that does not answer.
_PREPARE_AGAIN_S = 30.0
# A replica that was ready for so long was a good one: its end is the first of a series.
SETTLED_S = 60.0
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that look alike


class Actor:
    """What is known of replicas beside what the driver says, and the tasks under way."""

    def __init__(
        self, store: Store, driver: Driver, placement: Policy, tables: Tables,
        call: Callable[..., Awaitable[object]], wake: Callable[[], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._store, self._driver, self._placement, self._tables = store, driver, placement, tables
        self._call, self._wake, self._clock = call, wake, clock
        self.leaving: set[str] = set()  # out of the route table, and soon stopped
        self.prepared: dict[Key, float] = {}
        self.unpreparable: dict[Key, tuple[str, float]] = {}
        self.troubles: dict[Key, Trouble] = {}
        self.unplaced: dict[Key, str] = {}
        self.runs: Mapping[Key, Run] = {}  # of all revisions
        self.contents: dict[Key, Mapping[str, str]] = {}  # what the first replica of each revision loaded
        self._placed: dict[str, tuple[str, dict[int, float]]] = {}
        self._noted: set[str] = set()  # failed replicas that were counted
        self._let_go: dict[str, float] = {}  # id -> grace; to be stopped once the next table is out
        self._preparing: set[Key] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def adopt(self) -> None:
        """Finds what an earlier controller left."""
        self._placed = dict(await self._store_call(self._store.placements))
        await self._driver.adopt()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def note(self, replicas: Sequence[Replica], now: float) -> None:
        """Takes note of replicas that failed or are gone, of what the ready ones loaded, and of those that do well."""
        for replica in replicas:
            key = (replica.deployment, replica.revision)
            if replica.state is ReplicaState.FAILED:
                if replica.id not in self._noted:
                    self._noted.add(replica.id)
                    if replica.id not in self.leaving:
                        good = replica.ready_at is not None and now - replica.ready_at >= SETTLED_S
                        await self.trouble(key, replica.id, replica.reason or "it ended", now, first=good)
            elif replica.state is ReplicaState.READY:
                await self._note_content(key, replica, now)
                if (known := self.troubles.get(key)) and now - max(known.last_at, replica.ready_at or now) >= SETTLED_S:
                    del self.troubles[key]
        there = {replica.id for replica in replicas}
        self.leaving &= there
        self._noted &= there
        if gone := [id for id in self._placed if id not in there]:
            for id in gone:
                del self._placed[id]
            await self._store_call(self._store.unplaced, gone)
        for key, (_, at) in list(self.unpreparable.items()):
            if not 0 <= now - at <= _PREPARE_AGAIN_S:
                del self.unpreparable[key]
        for key, known in self.troubles.items():
            if known.last_at > now:  # the clock was set back: nobody waits until it was what it has been
                self.troubles[key] = dataclasses.replace(known, last_at=now)

    async def _note_content(self, key: Key, replica: Replica, now: float) -> None:
        """What the first replica of a revision loaded is the revision. One that loaded anything else never serves."""
        content = self.contents.get(key)
        if content is None or self._as_noted(replica) or replica.id in self.leaving:
            return
        if not content:
            await self._store_call(self._store.pin, *key, replica.content)
            self.contents[key] = replica.content
            return
        reason = "it loaded other files than the replicas of this revision before it; they changed meanwhile"
        await self.trouble(key, replica.id, reason, now)
        self.release(replica.id, 0.0)

    def as_it_counts(self, replica: Replica) -> Replica:
        """Draining while it waits for routers to let go of it; starting until what it loaded is written down."""
        if replica.state is not ReplicaState.FAILED and replica.id in self.leaving:
            return dataclasses.replace(replica, state=ReplicaState.DRAINING)
        if replica.state is ReplicaState.READY and not self._as_noted(replica):
            return dataclasses.replace(replica, state=ReplicaState.STARTING)
        return replica

    def _as_noted(self, replica: Replica) -> bool:
        """Whether it loaded nothing but what is written down of its revision."""
        content = self.contents.get((replica.deployment, replica.revision), {})
        return all(content.get(key) == digest for key, digest in replica.content.items())

    async def trouble(self, key: Key, replica: str, reason: str, now: float, first: bool = False) -> None:
        """One more replica of a revision that ended unasked or did not come up."""
        before = self.troubles.get(key)
        count = 1 if first or before is None else before.count + 1
        self.troubles[key] = Trouble(count, now, reason)
        log.warning("replica_failed", extra={"deployment": key[0], "replica": replica, "error": reason})
        message = f"{replica}: {reason}"
        await self._store_call(self._store.event, key[0], "replica-failed", message, now)

    def forget_deployment(self, name: str) -> None:
        """Nothing of it is left."""
        for known in (self.prepared, self.unpreparable, self.troubles, self.unplaced):
            for key in [key for key in known if key[0] == name]:
                known.pop(key)

    async def act(self, record: Record, action: Action, now: float) -> None:
        """Carries one action out. Doing it twice does no harm."""
        store, name, generation = self._store, record.name, record.state.generation
        match action:
            case SetPhase(revision, phase, reason):
                await self._store_call(store.set_phase, name, revision, phase, reason, now, generation)
                self.troubles.pop((name, revision), None)
                self.unplaced.pop((name, revision), None)
            case Begin(arms, stable, why):
                await self._store_call(store.begin, name, arms, stable, now, why, generation)
            case Switch(revision, why):
                await self._store_call(store.switch, name, revision, why, now, generation)
            case Retire(revision, reason):
                await self._store_call(store.retire, name, revision, False, reason, now)
            case Remove():
                await self._store_call(store.remove, name)
                self.forget_deployment(name)
            case Prepare(revision, run):
                self._prepare((name, revision), run)
            case Start(revision, run):
                await self._start((name, revision), run, now)
            case Stop(replica, grace_s, failed, reason):
                if failed:
                    found = next((one for one in self._driver.replicas() if one.id == replica), None)
                    if found is not None:
                        await self.trouble((name, found.revision), replica, reason, now)
                self.release(replica, grace_s)
            case Forget(replica):
                self._driver.forget(replica)

    def release(self, replica: str, grace_s: float) -> None:
        """Takes a replica out of the route table; it is stopped once routers know the table without it."""
        if replica not in self.leaving:
            self.leaving.add(replica)
            self._let_go[replica] = grace_s
            self._wake()  # what it leaves behind may be filled at once

    def published(self) -> None:
        """The table that is out lacks those that leave: begin to wait for the routers."""
        for replica, grace_s in self._let_go.items():
            self._run(self._stop(replica, grace_s, self._tables.version))
        self._let_go.clear()

    async def _stop(self, replica: str, grace_s: float, version: int) -> None:
        await self._tables.learned(version)
        try:
            await self._driver.stop(replica, grace_s)
        except Exception:
            log.exception("stop_failed", extra={"replica": replica})
            self.leaving.discard(replica)  # it is planned again
        self._wake()

    def _prepare(self, key: Key, run: Run) -> None:
        if key not in self._preparing and key not in self.prepared and key not in self.unpreparable:
            self._preparing.add(key)
            self._run(self._prepared(key, run))

    async def _prepared(self, key: Key, run: Run) -> None:
        try:
            await self._driver.prepare(run, self.contents.get(key))
            self.prepared[key] = self._clock()
        except PenstockError as error:
            self.unpreparable[key] = (error.message, self._clock())
        except Exception as error:
            log.exception("prepare_failed", extra={"deployment": key[0], "revision": key[1]})
            self.unpreparable[key] = (f"{type(error).__name__}: {error}", self._clock())
        finally:
            self._preparing.discard(key)
            self._wake()

    async def _start(self, key: Key, run: Run, now: float) -> None:
        name, revision = key
        placed = self._placement.place(run, await self._driver.places(), self._taken(run))
        if placed.place is None:
            if key not in self.unplaced:
                log.warning("no_room", extra={"deployment": name, "revision": revision, "error": placed.reason})
                message = f"a replica of revision {revision} waits for room: {placed.reason}"
                await self._store_call(self._store.event, name, "no-room", message, now)
            self.unplaced[key] = placed.reason
            return
        self.unplaced.pop(key, None)
        id = f"{name}-{revision}-" + "".join(secrets.choice(_ALPHABET) for _ in range(6))
        shares = dict(placed.gpu_shares)
        self._placed[id] = (placed.place, shares)
        await self._store_call(self._store.placed, id, name, revision, placed.place, shares, now)
        try:
            await self._driver.start(Launch(id, name, revision, run, placed.place, shares, self.contents.get(key, {})))
        except Exception as error:
            reason = error.message if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, (PenstockError, OSError)):
                log.exception("start_failed", extra={"replica": id})
            await self.trouble(key, id, reason, now)

    def _taken(self, run: Run) -> list[Taken]:
        """What running replicas hold. Those of which nobody noted what they were given hold what `runs` says."""
        taken = []
        for replica in self._driver.replicas():
            if replica.state is not ReplicaState.FAILED and replica.id in self._placed:
                place, shares = self._placed[replica.id]
                taken.append(Taken(place, self.runs.get((replica.deployment, replica.revision), run), shares))
        return taken

    async def _store_call(self, function: Callable[..., T], *args: object) -> T:
        return await self._call(function, *args)  # type: ignore[return-value]  # what the function gives

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
