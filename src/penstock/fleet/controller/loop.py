"""The controller's loop: builds views of what is, asks `reconcile`, acts, and publishes the route table.

A step happens when something changed (the store, a replica, a router's report about requests that wait) and each
second. Steps never overlap. The store is asked on one thread of its own, so that the loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from penstock.core.errors import AlreadyExists
from penstock.fleet.controller import deciding, routing
from penstock.fleet.controller.acting import Actor
from penstock.fleet.controller.counts import LATEST, rollout_to
from penstock.fleet.controller.demand import Demand, waits
from penstock.fleet.controller.reconcile import plan
from penstock.fleet.controller.routing import Choice
from penstock.fleet.controller.tables import Tables
from penstock.fleet.controller.tenant_shares import Shares
from penstock.fleet.controller.view import STORED, Begin, Remove, View
from penstock.fleet.drivers import Driver
from penstock.fleet.placement import Policy
from penstock.fleet.routes import Reply, Report, Tenant
from penstock.fleet.state import ArmStatistics, Replica, ReplicaState
from penstock.fleet.store import tenants
from penstock.fleet.store.decisions import Decisions
from penstock.fleet.store.records import Record
from penstock.fleet.store.store import Store

log = logging.getLogger("penstock.controller")

T = TypeVar("T")
TICK_S = 1.0
# Changes of one record that follow from each other in one step. More would be a plan that contradicts itself.
_MOST_CHANGES = 12
_ORPHAN_GRACE_S = 30.0
_PRUNE_S = 600.0
_STEP_S = 10.0  # a step is done by then, or its database hangs
# A scaling policy's memory may change every second; a controller that starts again may have lost so much of it.
_REMEMBER_S = 10.0


class Controller:
    """Owns the store's thread, not the store or the driver: whoever made them closes them after `run` has returned."""

    def __init__(
        self, store: Store, driver: Driver, placement: Policy, clock: Callable[[], float] = time.time,
        hold: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`hold` makes sure, on the store's thread and before each look, that no other controller acts."""
        self.store, self.driver, self.clock = store, driver, clock
        self.decisions = Decisions(store.engine)
        self.tables = Tables(store.secret)
        self.demand = Demand()
        self._shares = Shares()
        self.version = 0
        self.records: dict[str, Record] = {}
        self.statistics: dict[str, dict[int, ArmStatistics]] = {}  # of the experiments that go on
        self.tenants: dict[str, Tenant] = {}
        self.steps = self.failures = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._hold = hold
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._ended = asyncio.Event()
        self._stale = True
        self._loading = asyncio.Lock()
        self._urgent = False
        self._decided_at = 0.0
        self._pruned_at = clock()
        self._pruning: asyncio.Task[None] | None = None
        self._remembered: dict[str, float] = {}
        self._choices: dict[str, Choice] = {}
        self._size_memory: dict[str, Mapping[str, object]] = {}
        self._seen: tuple[object, ...] = ()
        self.actor = Actor(store, driver, placement, self.tables, self.call, self._wake.set, clock)

    # For the HTTP API

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """What the function gives, on the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def change(self, function: Callable[..., T], *args: object) -> T:
        """As `call`, for what changes the store: whoever asks next sees the change, and the loop looks at once."""
        try:
            return await self.call(function, *args)
        finally:
            self._stale = True
            self._wake.set()
            with contextlib.suppress(SQLAlchemyError):  # the loop tries again, and says what is wrong
                await self._load()

    async def report(self, report: Report) -> Reply:
        """Takes a router's word."""
        now = self.clock()
        self.demand.report(report, now)
        self.tables.heard(report.router, report.table_version)
        await self.tables.told()
        if any((record := self.records.get(name)) and not record.size for name in waits(report)):
            self._urgent = True
            self._wake.set()
        rated = {
            name for name, tenant in self.tenants.items()
            if tenant.rate is not None or tenant.tokens_per_minute is not None
        }  # fmt: skip
        shares = self._shares.of(report.router, report.quota_used, rated, self.tables.live(), now)
        limited = {name: tenant for name, tenant in self.tenants.items() if tenant.quota is not None}
        daily = {name: tenant for name, tenant in self.tenants.items() if tenant.tokens_per_day is not None}
        exhausted: dict[str, float] = {}
        tokens: dict[str, float] = {}
        if limited:
            used = {name: count for name, count in report.quota_used.items() if name in limited and count > 0}
            exhausted = await self.call(tenants.use_quotas, self.store, used, limited, now)
        if daily:
            used = {name: count for name, count in report.tokens_used.items() if name in daily and count > 0}
            tokens = await self.call(tenants.use_tokens, self.store, used, daily, now)
        return Reply(exhausted, shares, tokens)

    async def after(self, version: int, timeout_s: float) -> int:
        """The fleet's version, once it is later than that one or `timeout_s` is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.version > version)
        return self.version

    def views(self) -> dict[str, View]:
        """All deployments as they are."""
        by_name: dict[str, list[Replica]] = {}
        for replica in self.replicas():
            by_name.setdefault(replica.deployment, []).append(replica)
        return {name: self._view(record, by_name.get(name, [])) for name, record in self.records.items()}

    def replicas(self) -> list[Replica]:
        """The driver's, where those that wait for routers to let go of them are draining, and those of which it is not
        written down what they loaded still start."""
        return [self.actor.as_it_counts(one) for one in self.driver.replicas()]

    # The loop

    async def open(self) -> None:
        """Finds what there is. First of all: before it nothing is known, not even which deployments there are."""
        await self.actor.adopt()
        await self._load()

    async def run(self) -> None:
        """Reconciles until it is cancelled or `shut_down`. Replicas go on. Raises: AlreadyExists: another controller
        acts."""
        try:
            while not self._stopping:
                self.driver.changed.clear()
                self._wake.clear()
                try:
                    await self.call(self._hold)
                    await self.step(self.clock())
                except AlreadyExists:  # another one acts: nothing more may be done here
                    raise
                except Exception:  # the database may be away, and come back; routers go on with the last table
                    self.failures += 1
                    self._stale = True
                    log.exception("step_failed")
                    await asyncio.sleep(TICK_S)
                if not self._stopping:
                    await self._sleep()
        finally:
            self._ended.set()
            await self.close()

    async def close(self) -> None:
        """Ends what is under way, without stopping any replica."""
        await self.actor.close()
        if self._pruning is not None:
            await self._pruning
        self._thread.shutdown(wait=True)

    async def shut_down(self, grace_s: float) -> None:
        """Drains and stops every replica; `run` returns. What is wished stays wished: the next start brings it up."""
        self._stopping = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):  # a step that goes on might start another replica
            async with asyncio.timeout(_STEP_S):
                await self._ended.wait()
        for replica in self.driver.replicas():
            if replica.state is ReplicaState.FAILED:
                self.driver.forget(replica.id)
            else:
                await self.driver.stop(replica.id, grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + 10.0):
                while any(one.state is not ReplicaState.FAILED for one in self.driver.replicas()):
                    self.driver.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await self.driver.changed.wait()

    async def step(self, now: float) -> None:
        """One look at everything, and what follows from it."""
        self.steps += 1
        await self._load()
        await self.actor.note(self.driver.replicas(), now)
        self._stop_orphans()
        if self._urgent or now - self._decided_at >= TICK_S or now < self._decided_at:
            await self._decide(now)
        for name in list(self.records):
            await self._alone(name, self._reconcile(name, now))
        await self._publish()
        if now - self._pruned_at >= _PRUNE_S and self._pruning is None:
            self._pruned_at = now
            self._pruning = asyncio.create_task(self._prune(now))

    async def _alone(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Does something for one deployment. Its failure is no other's, but for one of the database."""
        try:
            await work
        except DBAPIError:
            raise
        except Exception:
            self.failures += 1
            self._stale = True
            log.exception("deployment_failed", extra={"deployment": name})

    async def _prune(self, now: float) -> None:
        """Keeps the decision log within its bounds; on a thread of its own, as it may take seconds."""
        try:
            await asyncio.to_thread(self.decisions.prune, now)
            await asyncio.to_thread(self.store.sweep)
        except Exception:
            log.exception("prune_failed")
        finally:
            self._pruning = None

    async def _sleep(self) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in (self._wake, self.driver.changed)]
        try:
            timeout_s = min(TICK_S, max(0.0, self._decided_at + TICK_S - self.clock()))
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _load(self) -> None:
        async with self._loading:  # whoever comes while another one reads gets what that one finds
            if not self._stale:
                return
            self._stale = False
            version, self.records = await self.call(self.store.load)
            self.tenants = {one.name: one for one in await self.call(tenants.tenants, self.store)}
            self.actor.runs = {
                (name, revision.number): revision.run
                for name, record in self.records.items()
                for revision in record.state.revisions
            }
            self.actor.contents = {
                (name, revision.number): revision.content
                for name, record in self.records.items()
                for revision in record.state.revisions
            }
            await self._moved(version)

    async def _reload(self, name: str) -> None:
        self._stale = True
        await self._load()

    async def _moved(self, version: int) -> None:
        if version > self.version:
            self.version = version
            async with self._changed:
                self._changed.notify_all()

    def _stop_orphans(self) -> None:
        for replica in self.driver.replicas():
            record = self.records.get(replica.deployment)
            if record is not None and record.find(replica.revision) is not None:
                continue
            if replica.state is ReplicaState.FAILED:
                self.driver.forget(replica.id)
            elif replica.id not in self.actor.leaving:
                log.warning("orphan_stopped", extra={"replica": replica.id})
                self.actor.release(replica.id, _ORPHAN_GRACE_S)

    async def _decide(self, now: float) -> None:
        self._urgent, self._decided_at = False, now
        self.demand.sample(self.records, now)
        views = self.views()
        running = {
            name: view.record.state.experiment.id for name, view in views.items() if view.record.state.experiment
        }
        statistics = await self.call(self.decisions.statistics, running)
        for name, view in views.items():
            if not view.record.state.deleting:
                await self._alone(name, self._size(name, view, now))
                await self._alone(name, self._weigh(name, view, statistics.get(name, {}), now))
        for known in (self._choices, self._size_memory, self._remembered, self.statistics):
            for gone in known.keys() - self.records.keys():
                known.pop(gone)

    async def _size(self, name: str, view: View, now: float) -> None:
        record = view.record
        memory = self._size_memory.get(name, record.size_memory)
        sized = deciding.size(view, tuple(self.demand.samples(name)), memory, now)
        self._size_memory[name] = sized.memory
        due = sized.memory != record.size_memory and now - self._remembered.get(name, 0.0) >= _REMEMBER_S
        if sized.replicas != record.size or due or not record.size_reason:
            self._remembered[name] = now
            await self.change(self.store.sized, name, sized.replicas, sized.reason, sized.memory, record.size, now)

    async def _weigh(self, name: str, view: View, statistics: dict[int, ArmStatistics], now: float) -> None:
        record = view.record
        experiment = record.state.experiment
        if experiment is None:
            return
        self.statistics[name] = statistics
        if record.state.wish.traffic.policy == LATEST:  # its shares are the numbers of replicas
            self._choices.pop(name, None)
            return
        decision = deciding.weigh(view, statistics, now)
        if decision is None:
            return
        policy = deciding.traffic_policy(record.state.wish.traffic.policy)
        self._choices[name] = Choice(policy.logged, decision.contextual)
        paused = record.state.paused
        weights = experiment.weights if paused and experiment.weights else dict(decision.weights)
        after = (weights, dict(decision.memory), tuple(decision.alarms), decision.explanation)
        before = (dict(experiment.weights), dict(experiment.memory), experiment.alarms, experiment.explanation)
        if after != before:
            await self.call(
                self.store.decided, experiment.id, decision.memory, weights, decision.alarms, decision.explanation
            )
            self._stale = True
        for alarm in set(decision.alarms) - set(experiment.alarms):
            await self.change(self.store.event, name, "alarm", alarm, now)
        verdict = decision.verdict
        if verdict is not None and not paused and rollout_to(record) is None and verdict.revision in experiment.arms:
            if verdict.promote:
                await self.change(self.store.promote, name, verdict.revision, verdict.reason, now)
            elif len(experiment.arms) > 1:
                await self.change(self.store.retire, name, verdict.revision, True, verdict.reason, now)
        await self._load()

    async def _reconcile(self, name: str, now: float) -> None:
        for _ in range(_MOST_CHANGES):
            record = self.records.get(name)
            if record is None:
                return
            replicas = [one for one in self.replicas() if one.deployment == name]
            actions = plan(self._view(record, replicas), now)
            for action in actions:
                await self.actor.act(record, action, now)
                if isinstance(action, Remove):
                    await self.call(self.decisions.forget, name)
                    self.driver.release(name)
            if not any(isinstance(action, STORED) for action in actions):
                return
            await self._reload(name)
            if any(isinstance(action, Begin) for action in actions) and name in self.records:
                # A new experiment has no weights yet. Until the next second all would go to one arm.
                await self._weigh(name, self.views()[name], {}, now)
        log.error("plan_goes_in_circles", extra={"deployment": name, "actions": repr(actions)})

    async def _publish(self) -> None:
        """Moves the counter when the table, or what watchers see, is another than before."""
        endpoints = tuple(
            found
            for name, view in sorted(self.views().items())
            if (found := routing.endpoint(view, self._choices.get(name, Choice()))) is not None
        )
        known = tuple(self.tenants.values())
        table = self.tables.differs(endpoints, known)
        seen = tuple(self.replicas())
        if table or seen != self._seen:
            self._seen = seen
            version = await self.call(self.store.bump)
            if table:
                await self.tables.publish(version, endpoints, known)
            await self._moved(version)
        self.actor.published()

    def _view(self, record: Record, replicas: list[Replica]) -> View:
        actor, name = self.actor, record.name
        return View(
            record=record,
            replicas=replicas,
            prepared=_of(actor.prepared, name),
            unpreparable={number: reason for number, (reason, _) in _of(actor.unpreparable, name).items()},
            troubles=_of(actor.troubles, name),
            unplaced=_of(actor.unplaced, name),
        )


def _of(known: Mapping[tuple[str, int], T], name: str) -> dict[int, T]:
    return {number: value for (deployment, number), value in known.items() if deployment == name}
