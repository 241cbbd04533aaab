"""The controller under deploys, failures, kills, rollbacks, scale changes and restarts in any order."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_fleet import MemoryFleet

from penstock.core.errors import PenstockError
from penstock.fleet.controller.reconcile import plan
from penstock.fleet.state import Phase, ReplicaState

MODELS = ("/a", "/b", "/c", "/hanging", "/crashing")
BAD = {"/hanging", "/crashing"}
POLICIES = ("latest", "latest", "canary", "split", "thompson")
STRATEGIES = ("rolling", "blue-green", "recreate")


class Fleet(RuleBasedStateMachine):
    """One deployment, "m". What the test did to it is noted where an invariant depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(
            tempfile.mkdtemp(prefix="penstock-fleet-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        )
        self.fleet = MemoryFleet(self.folder)
        self.versions = [0]
        self.phases: dict[int, Phase] = {}  # at the last look
        self.taken_out = False  # a person took an arm out since the last look
        self.after: tuple[float, ...] = ()  # looks after each change; none at the start

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(strategy=st.sampled_from(STRATEGIES), policy=st.sampled_from(POLICIES), count=st.integers(1, 3))
    def start(self, strategy: str, policy: str, count: int) -> None:
        self.fleet.world.behaviour.update({"/hanging": "starting", "/crashing": "failing"})
        self.strategy, self.policy, self.count = strategy, policy, count
        self.run(self.fleet.start())
        self.wish("/a")
        self.after = (0.0, 0.2)

    def wish(self, model: str) -> None:
        document = {
            "model": model, "replicas": self.count, "traffic": self.policy,
            "rollout": {"strategy": self.strategy, "ready_timeout_s": 20, "keep_previous_s": 10},
        }  # fmt: skip
        self.run(self.fleet.deploy("m", **document))
        for each in self.after:
            self.look(each)

    def teardown(self) -> None:
        try:
            if hasattr(self, "strategy"):
                self.everything_goes()
        finally:
            self.run(self.fleet.stop())
            self.loop.close()
            shutil.rmtree(self.folder)

    # What happens

    @rule(model=st.sampled_from(MODELS))
    def deploy(self, model: str) -> None:
        self.wish(model)

    @rule(count=st.integers(1, 4))
    def scale(self, count: int) -> None:
        self.count = count
        self.wish(self.fleet.record().state.wish.run.model)

    @rule(strategy=st.sampled_from(STRATEGIES))
    def change_strategy(self, strategy: str) -> None:
        self.strategy = strategy
        self.wish(self.fleet.record().state.wish.run.model)

    @rule(policy=st.sampled_from(POLICIES))
    def change_policy(self, policy: str) -> None:
        self.policy = policy
        self.wish(self.fleet.record().state.wish.run.model)

    @rule(to=st.one_of(st.none(), st.integers(1, 4)))
    def roll_back(self, to: int | None) -> None:
        self.by_hand(self.fleet.store.rollback, "m", to, self.fleet.now)

    @rule(number=st.integers(1, 4))
    def promote(self, number: int) -> None:
        self.by_hand(self.fleet.store.promote, "m", number, "by the test", self.fleet.now)

    @rule(number=st.integers(1, 4), failed=st.booleans())
    def retire(self, number: int, failed: bool) -> None:
        self.by_hand(self.fleet.store.retire, "m", number, failed, "by the test", self.fleet.now)
        self.taken_out = True

    def by_hand(self, function: Any, *arguments: Any) -> None:
        try:
            self.run(self.fleet.change(function, *arguments))
        except PenstockError as refused:
            assert refused.message  # no such revision, or it failed; nothing else is possible

    @rule(which=st.integers(0, 9))
    def kill(self, which: int) -> None:
        running = self.fleet.replicas(state="ready") + self.fleet.replicas(state="starting")
        if running:
            self.fleet.driver.fail(running[which % len(running)].id, "killed")

    @rule()
    def come_up(self) -> None:
        self.fleet.come_up()

    @rule()
    def drained(self) -> None:
        for replica in self.fleet.replicas(state="draining"):
            self.fleet.driver.end(replica.id)

    @rule(lingering=st.booleans(), slow=st.booleans())
    def change_world(self, lingering: bool, slow: bool) -> None:
        self.fleet.world.lingering = lingering
        for model in ("/a", "/b", "/c"):
            self.fleet.world.behaviour[model] = "starting" if slow else "ready"

    @rule()
    def restart(self) -> None:
        self.run(self.fleet.restart())

    @rule(seconds=st.lists(st.sampled_from((0.0, 0.2, 1.0, 3.0, 25.0)), min_size=1, max_size=5))
    def step(self, seconds: list[float]) -> None:
        for each in seconds:
            self.look(each)

    @rule(times=st.integers(1, 8))
    def goes_well(self, times: int) -> None:
        for _ in range(times):
            self.fleet.come_up()
            self.look(0.5)

    def look(self, seconds: float) -> None:
        fleet = self.fleet
        phases = self.phases
        ready = len(self.serving_replicas())
        switching = fleet.record().switch_to is not None
        self.run(fleet.step(seconds))
        after = fleet.record()
        arms = after.state.experiment.arms if after.state.experiment else ()
        for number in arms:  # what failed gets nothing
            revision = after.find(number)
            assert revision is not None
            assert revision.phase is not Phase.FAILED
        self.phases = {one.number: one.phase for one in after.state.revisions}
        failed = any(
            one.phase is Phase.FAILED and phases.get(one.number) is not Phase.FAILED for one in after.state.revisions
        )
        retired = any(
            one.phase is Phase.RETIRED and phases.get(one.number) not in (None, Phase.RETIRED)
            for one in after.state.revisions
        )
        # Surge first: by itself the controller takes nothing that serves below what is wished. A person's rollback, and
        # what failed, take out what they name; recreate means to.
        taken_out, self.taken_out = self.taken_out, False
        if taken_out:
            return
        if self.strategy != "recreate" and not switching and not failed and not (retired and self.policy != "latest"):
            assert len(self.serving_replicas()) >= min(ready, after.size), (ready, after.size)

    # What holds

    def serving_replicas(self) -> list[str]:
        return [one.id for arm in self.fleet.endpoint().arms if arm.weight > 0 for one in arm.upstreams]

    @invariant()
    @precondition(lambda self: hasattr(self, "strategy") and "m" in self.fleet.controller.records)
    def weights_sum_to_one_over_ready_arms(self) -> None:
        endpoint = self.fleet.endpoint()
        if self.fleet.record().state.experiment is None:
            assert endpoint.arms == ()
            return
        assert sum(arm.weight for arm in endpoint.arms) == pytest.approx(1)
        assert all(arm.weight >= 0 for arm in endpoint.arms)
        if any(arm.upstreams for arm in endpoint.arms):
            assert all(arm.upstreams for arm in endpoint.arms if arm.weight > 0)
            assert not endpoint.waking
        else:
            assert endpoint.waking
        assert endpoint.stable in {arm.revision for arm in endpoint.arms}

    @invariant()
    @precondition(lambda self: hasattr(self, "strategy"))
    def versions_grow(self) -> None:
        version = self.fleet.store.version()
        assert version >= self.versions[-1]
        assert self.fleet.controller.tables.version <= version
        self.versions.append(version)

    @rule()
    def settles(self) -> None:
        """Left alone, with good models that come up, it converges: what is wished serves, and nothing is planned."""
        fleet = self.fleet
        fleet.world.lingering = False
        for model in ("/a", "/b", "/c"):
            fleet.world.behaviour[model] = "ready"
        self.drained()
        for _ in range(16):
            fleet.come_up()
            self.look(10.0)
        record = fleet.record()
        wished = record.find(record.revision)
        assert wished is not None
        running = [one for one in fleet.driver.replicas() if one.state is not ReplicaState.FAILED]
        if record.state.experiment is None:
            assert wished.phase is Phase.FAILED
            assert wished.run.model in BAD
            assert wished.reason
            assert running == []
            return
        assert record.switch_to is None
        serving = fleet.serving()
        assert sum(len(arm.upstreams) for arm in fleet.endpoint().arms) >= record.size
        assert {one.revision for one in running} == set(record.state.experiment.arms)
        if wished.phase is Phase.FAILED:
            assert record.revision not in serving
        elif self.policy == "latest":
            assert serving == {record.revision: record.size}
            assert record.stable == record.revision
        assert plan(fleet.view(), fleet.now) == []

    def everything_goes(self) -> None:
        """No replica is left when the deployment is deleted, whatever was before."""
        fleet = self.fleet
        fleet.world.lingering = False
        self.drained()
        self.run(fleet.change(fleet.store.delete, "m", fleet.now))
        for _ in range(4):
            self.run(fleet.step(1.0))
        assert fleet.driver.replicas() == ()
        assert fleet.controller.records == {}
        assert fleet.store.placements() == {}


Fleet.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestFleet = Fleet.TestCase


@pytest.mark.chaos
class TestFleetLong(Fleet.TestCase):
    """Many more, and longer ones."""

    settings = settings(
        max_examples=1500,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
