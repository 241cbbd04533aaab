"""The controller over the memory driver and a clock that is an argument: revisions, updates, rollbacks."""

from __future__ import annotations

import pytest
from memory_fleet import MemoryFleet


async def test_first_revision_serves_once_ready(memory: MemoryFleet) -> None:
    memory.world.behaviour["/a"] = "starting"
    await memory.deploy("m", model="/a", replicas=2)
    await memory.step()
    assert memory.endpoint().waking  # requests are held: one will come
    assert memory.phase(1) in ("pending", "starting")
    await memory.step()
    assert len(memory.replicas(1, "starting")) == 2
    memory.come_up()
    await memory.step()
    assert memory.phase(1) == "ready"
    assert memory.serving() == {1: 2}
    assert memory.weights() == {1: 1.0}
    assert not memory.endpoint().waking


async def test_rolling_update_keeps_capacity_and_surges_first(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas=4, rollout={"surge": 1})
    await memory.settle()
    memory.world.behaviour["/b"] = "starting"
    await memory.deploy("m", model="/b", replicas=4, rollout={"surge": 1})
    seen = set()
    for _ in range(12):
        await memory.step(0.5)
        serving = memory.serving()
        assert sum(serving.values()) >= 4
        live = len(memory.replicas(state="ready")) + len(memory.replicas(state="starting"))
        assert live <= 5
        shares = memory.weights()
        assert sum(shares.values()) == pytest.approx(1)
        total = sum(serving.values())
        assert all(shares[number] == pytest.approx(count / total) for number, count in serving.items())
        seen.add(tuple(sorted(serving.items())))
        memory.come_up()
    assert memory.serving() == {2: 4}
    assert {((1, 4),), ((1, 3), (2, 1)), ((1, 1), (2, 3)), ((2, 4),)} <= seen
    assert memory.phase(1) == "retired"


async def test_previous_revision_stays_warm_for_its_time(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", rollout={"keep_previous_s": 20})
    await memory.settle()
    await memory.deploy("m", model="/b", rollout={"keep_previous_s": 20})
    await memory.settle()
    assert memory.serving() == {2: 1}
    assert len(memory.replicas(1, "ready")) == 1
    await memory.settle(20)
    assert memory.replicas(1) == []


async def test_rollback_to_a_warm_revision_takes_one_step(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    await memory.deploy("m", model="/b")
    await memory.settle()
    started = memory.world.started
    await memory.change(memory.store.rollback, "m", None, memory.now)
    await memory.step()
    assert memory.serving() == {1: 1}
    assert memory.record().state.wish.run.model == "/a"
    assert memory.world.started == started
    assert (memory.phase(1), memory.phase(2)) == ("ready", "retired")


async def test_rollback_without_a_warm_one_starts_it_and_keeps_the_other_until_then(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", rollout={"keep_previous_s": 0})
    await memory.settle()
    await memory.deploy("m", model="/b", rollout={"keep_previous_s": 0})
    await memory.settle()
    assert memory.replicas(1) == []
    memory.world.behaviour["/a"] = "starting"
    await memory.change(memory.store.rollback, "m", None, memory.now)
    await memory.settle(2)
    assert memory.serving() == {2: 1}
    memory.come_up()
    await memory.settle(2)
    assert memory.serving() == {1: 1}


async def test_update_that_crashes_leaves_the_old_revision_serving(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    before = {one.id for one in memory.replicas(1, "ready")}
    memory.world.behaviour["/bad"] = "failing"
    await memory.deploy("m", model="/bad", replicas=2)
    for _ in range(20):
        await memory.step(0.5)
        assert memory.serving() == {1: 2}
    assert memory.phase(2) == "failed"
    assert "it ends by itself" in memory.reason(2)
    assert "3 replicas failed" in memory.reason(2)
    assert {one.id for one in memory.replicas(1, "ready")} == before
    assert memory.replicas(2) == []


async def test_update_that_is_never_ready_fails_after_its_time(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", rollout={"ready_timeout_s": 10})
    await memory.settle()
    memory.world.behaviour["/slow"] = "starting"
    await memory.deploy("m", model="/slow", rollout={"ready_timeout_s": 10})
    await memory.settle(9)
    assert memory.phase(2) == "starting"
    await memory.settle(3)
    assert memory.phase(2) == "failed"
    assert "within 10 s" in memory.reason(2)
    assert memory.serving() == {1: 1}
    assert memory.replicas(2) == []


async def test_what_cannot_be_prepared_fails_without_a_start(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    memory.world.behaviour["/x"] = "unpreparable"
    started = memory.world.started
    await memory.deploy("m", model="/x")
    await memory.settle(2)
    assert memory.phase(2) == "failed"
    assert memory.reason(2) == "cannot prepare /x"
    assert memory.world.started == started
    assert memory.serving() == {1: 1}


async def test_failed_run_deployed_again_is_a_new_try(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    memory.world.behaviour["/b"] = "unpreparable"
    assert await memory.deploy("m", model="/b") == 2
    await memory.settle(2)
    memory.world.behaviour["/b"] = "ready"
    assert await memory.deploy("m", model="/b") == 3
    await memory.settle()
    assert memory.serving() == {3: 1}


async def test_blue_green_switches_once_when_all_are_ready(memory: MemoryFleet) -> None:
    rollout = {"strategy": "blue-green"}
    await memory.deploy("m", model="/a", replicas=3, rollout=rollout)
    await memory.settle()
    memory.world.behaviour["/b"] = "starting"
    await memory.deploy("m", model="/b", replicas=3, rollout=rollout)
    await memory.settle(2)
    for replica in memory.replicas(2, "starting")[:2]:
        memory.driver.set_ready(replica.id)
    await memory.settle(2)
    assert memory.serving() == {1: 3}  # two of three are not all
    memory.come_up()
    await memory.step(0.5)
    assert memory.serving() == {2: 3}
    assert len(memory.replicas(1, "ready")) == 3  # all of them, to go back to
    await memory.settle(61, every=4)
    assert memory.replicas(1) == []


async def test_recreate_ends_the_old_before_it_starts_the_new(memory: MemoryFleet) -> None:
    rollout = {"strategy": "recreate"}
    await memory.deploy("m", model="/a", replicas=2, rollout=rollout)
    await memory.settle()
    memory.world.lingering = True
    await memory.deploy("m", model="/b", replicas=2, rollout=rollout)
    await memory.settle(2)
    assert memory.replicas(2) == []
    assert memory.endpoint().waking
    for replica in memory.replicas(1):
        memory.driver.end(replica.id)
    await memory.settle(2)
    assert memory.serving() == {2: 2}


async def test_recreate_that_fails_brings_the_old_revision_back(memory: MemoryFleet) -> None:
    rollout = {"strategy": "recreate"}
    await memory.deploy("m", model="/a", rollout=rollout)
    await memory.settle()
    memory.world.behaviour["/bad"] = "failing"
    await memory.deploy("m", model="/bad", rollout=rollout)
    await memory.settle(10)
    assert memory.phase(2) == "failed"
    assert memory.serving() == {1: 1}


async def test_newer_deployment_supersedes_one_that_still_starts(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    memory.world.behaviour["/b"] = "starting"
    await memory.deploy("m", model="/b", replicas=2)
    await memory.settle(1)
    await memory.deploy("m", model="/c", replicas=2)
    for _ in range(10):
        await memory.step(0.5)
        assert sum(memory.serving().values()) >= 2
    assert memory.serving() == {3: 2}
    assert memory.phase(2) == "retired"
    assert memory.replicas(2) == []
