"""Shares of arms that the controller follows: canaries, bandits, shadows."""

from __future__ import annotations

import pytest
from memory_fleet import MemoryFleet

from penstock.fleet.state import ArmStatistics
from penstock.fleet.store.batch import Batch


async def test_canary_shares_until_its_guard_takes_it_back(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", traffic="canary")
    await memory.settle()
    await memory.deploy("m", model="/b", traffic="canary")
    await memory.settle(3)
    experiment = memory.record().state.experiment
    assert experiment is not None
    assert experiment.arms == (1, 2)
    weights = memory.weights()
    assert 0 < weights[2] < 0.5
    assert sum(weights.values()) == pytest.approx(1)
    arms = {number: ("m", experiment.id, number) for number in (1, 2)}
    fine, sick = ArmStatistics(requests=200, latency=(200,)), ArmStatistics(requests=40, errors=20, latency=(20,))
    for second in range(60):
        counted = {arms[1]: fine, arms[2]: fine if second < 25 else sick}
        memory.controller.decisions.record(Batch("w", second + 1, memory.now, statistics=counted))
        await memory.step(1)
        if memory.phase(2) == "failed":
            break
    assert second >= 25
    await memory.settle(2)
    assert memory.phase(2) == "failed"
    assert "error rate" in memory.reason(2)
    assert memory.weights() == {1: 1.0}
    assert memory.replicas(2) == []


async def test_canary_that_does_well_is_promoted_and_gets_its_replicas_first(memory: MemoryFleet) -> None:
    wish = {"replicas": 2, "traffic": {"policy": "canary"}}
    await memory.deploy("m", model="/a", **wish)
    await memory.settle()
    await memory.deploy("m", model="/b", **wish)
    await memory.settle(3)
    await memory.change(memory.store.promote, "m", 2, "by the test", memory.now)
    for _ in range(12):
        await memory.step(0.5)
        assert sum(memory.serving().values()) >= 2
    assert memory.serving() == {2: 2}
    assert (memory.phase(1), memory.phase(2)) == ("retired", "ready")
    assert memory.record().stable == 2


async def test_new_revision_of_a_bandit_is_one_more_arm(memory: MemoryFleet) -> None:
    for model in ("/a", "/b", "/c"):
        await memory.deploy("m", model=model, traffic="thompson")
        await memory.settle(3)
    experiment = memory.record().state.experiment
    assert experiment is not None
    assert experiment.arms == (1, 2, 3)
    assert sum(memory.weights().values()) == pytest.approx(1)
    memory.controller.store.retire("m", 2, False, "by the test", memory.now)
    memory.controller._stale = True
    await memory.settle(3)
    assert set(memory.weights()) == {1, 3}


async def test_weight_of_an_arm_without_replicas_goes_to_the_others(memory: MemoryFleet) -> None:
    options = {"policy": "split", "options": {"weights": {"1": 90, "2": 10}}}
    await memory.deploy("m", model="/a", traffic=options)
    await memory.settle(3)
    await memory.deploy("m", model="/b", traffic=options)
    await memory.settle(3)
    assert memory.weights() == pytest.approx({1: 0.9, 2: 0.1})
    memory.world.behaviour["/a"] = "starting"
    memory.driver.fail(memory.replicas(1, "ready")[0].id, "killed")
    await memory.step(0.1)
    assert memory.weights() == {1: 0.0, 2: 1.0}


async def test_shadow_has_replicas_and_no_share(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    await memory.deploy("m", model="/b", traffic={"policy": "latest", "shadow": {"revision": 2, "share": 0.5}})
    await memory.settle()
    assert memory.weights() == {1: 1.0, 2: 0.0}
    assert memory.endpoint().shadow is not None
    assert memory.serving() == {1: 1}
    await memory.deploy("m", model="/b", traffic="latest")  # no shadow any more: it takes over
    await memory.settle()
    assert memory.serving() == {2: 1}
