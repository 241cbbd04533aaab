"""What the controller does with deployments, over replicas in memory and a clock of the test's."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from memory_fleet import MemoryFleet
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from penstock.fleet.routes import Load, Report
from penstock.fleet.state import ArmStatistics
from penstock.fleet.store.batch import Batch


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[MemoryFleet]:
    async with MemoryFleet(tmp_path) as fleet:
        yield fleet


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


async def test_dead_replica_is_replaced_at_once_and_then_with_backoff(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    starts = []
    for _ in range(4):
        for replica in memory.replicas(1, "ready"):
            memory.driver.fail(replica.id, "killed")
        failed_at = memory.now
        for _ in range(40):
            await memory.step(0.25)
            if memory.replicas(1, "ready"):
                break
        starts.append(memory.now - failed_at)
    assert starts[0] <= 0.25
    assert starts == sorted(starts)
    assert starts[3] >= 4
    assert memory.phase(1) == "ready"  # what serves is tried for ever


async def test_clock_that_is_set_back_holds_up_no_replacement(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    for _ in range(3):
        memory.driver.fail(memory.replicas(1)[0].id, "killed")
        await memory.settle(4)
    memory.driver.fail(memory.replicas(1)[0].id, "killed")
    await memory.step()
    memory.now -= 3600
    await memory.settle(10)
    assert memory.serving() == {1: 1}


async def test_good_time_ends_a_series_of_failures(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    for _ in range(3):
        memory.driver.fail(memory.replicas(1, "ready")[0].id, "killed")
        await memory.settle(5)
    await memory.settle(70, every=4)
    memory.driver.fail(memory.replicas(1, "ready")[0].id, "killed")
    await memory.step(0.1)
    await memory.step(0.1)
    assert len(memory.replicas(1, "ready")) == 1


async def test_replica_that_never_comes_up_is_replaced(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", rollout={"ready_timeout_s": 5})
    await memory.settle()
    memory.world.behaviour["/a"] = "starting"
    memory.driver.fail(memory.replicas(1, "ready")[0].id, "killed")
    await memory.settle(4)
    stuck = memory.replicas(1, "starting")
    assert len(stuck) == 1
    await memory.settle(4)
    assert [one.id for one in memory.replicas(1, "starting")] != [stuck[0].id]


async def test_scale_down_removes_what_starts_first(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    memory.world.behaviour["/a"] = "starting"
    await memory.deploy("m", model="/a", replicas=4)
    await memory.settle(2)
    ready = {one.id for one in memory.replicas(1, "ready")}
    assert len(memory.replicas(1, "starting")) == 2
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle(2)
    assert {one.id for one in memory.replicas(1)} == ready


async def test_replica_leaves_the_table_before_it_is_stopped(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    await memory.deploy("m", model="/a", replicas=1)
    controller = memory.controller
    before = controller.tables.version
    await controller.report(Report("router", before, 1.0))
    await controller.step(memory.now + 1)
    assert len(memory.endpoint().arms[0].upstreams) == 1
    assert controller.tables.version > before
    assert len(memory.driver.replicas()) == 2  # the router does not know yet
    await memory.step()
    await memory.step()
    assert len(memory.driver.replicas()) == 1


async def test_idle_deployment_goes_to_zero_and_held_requests_wake_it(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas={"minimum": 0, "maximum": 3, "zero_after_s": 5})
    memory.load["m"] = (1.0, 0)
    await memory.settle(3)
    assert memory.serving() == {1: 1}
    memory.load.clear()
    await memory.settle(120, every=4)
    assert memory.record().size == 0
    assert memory.replicas() == []
    assert memory.endpoint().waking
    await memory.controller.report(Report("router", 0, 0.01, (Load("m", 0, 5.0, 5, 0.0, 5),)))
    await memory.controller.step(memory.now + 0.01)  # at once: not only at the next second
    assert len(memory.replicas(1)) >= 1
    assert memory.phase(1) == "ready"


async def test_update_at_zero_is_proved_by_one_replica(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas={"minimum": 0, "maximum": 1, "zero_after_s": 1})
    await memory.settle(200, every=4)
    assert memory.replicas() == []
    await memory.deploy("m", model="/b", replicas={"minimum": 0, "maximum": 1, "zero_after_s": 1})
    await memory.settle(5)
    assert memory.phase(2) == "ready"
    assert memory.record().stable == 2


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


async def test_deleted_deployment_is_drained_and_gone(memory: MemoryFleet) -> None:
    memory.world.lingering = True
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    await memory.change(memory.store.delete, "m", memory.now)
    await memory.settle(2)
    assert memory.controller.tables.endpoints == ()
    assert [one.state for one in memory.replicas()] == ["draining"] * 2
    assert "m" in memory.controller.records
    for replica in memory.replicas():
        memory.driver.end(replica.id)
    await memory.settle(2)
    assert memory.controller.records == {}
    assert await memory.deploy("m", model="/a") == 1


async def test_restarted_controller_goes_on_with_the_replicas_there_are(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    version, ids = memory.controller.tables.version, {one.id for one in memory.replicas()}
    await memory.restart()
    await memory.settle(2)
    assert {one.id for one in memory.replicas()} == ids
    assert memory.serving() == {1: 2}
    assert memory.controller.tables.version > version


async def test_revision_is_what_its_first_replica_loaded(memory: MemoryFleet) -> None:
    memory.world.content["/a"] = {"1": "old"}
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle()
    assert memory.serving() == {1: 2}
    await memory.restart()
    memory.world.content["/a"] = {"1": "new"}
    memory.driver.fail(memory.replicas()[0].id, "killed")
    await memory.settle(10)
    assert memory.serving() == {1: 1}, "the one that loaded the old files"
    assert "no longer those" in memory.view().troubles[1].reason
    memory.world.content["/a"] = {"1": "old"}
    await memory.settle(60)
    assert memory.serving() == {1: 2}
    await memory.change(memory.store.delete, "m", memory.now)
    await memory.settle()
    memory.world.content["/a"] = {"1": "new"}
    await memory.deploy("m", model="/a")
    await memory.settle()
    assert memory.serving() == {1: 1}, "another deployment of the same name"


async def test_replica_that_loaded_other_files_than_the_first_never_serves(memory: MemoryFleet) -> None:
    """Both started before anybody knew what the revision is."""
    memory.world.behaviour["/a"] = "starting"
    memory.world.content["/a"] = {"1": "old"}
    await memory.deploy("m", model="/a", replicas=2)
    await memory.settle(1)
    first, second = memory.replicas(1, "starting")
    memory.world.replicas[second.id] = replace(second, content={"1": "new"})
    memory.driver.set_ready(first.id)
    memory.driver.set_ready(second.id)
    assert [one.state for one in memory.controller.replicas()] == ["starting", "starting"], "not yet written down"
    await memory.step()
    assert [one.id for arm in memory.endpoint().arms for one in arm.upstreams] == [first.id]
    said = await memory.change(memory.store.events, "m")
    assert [one.message for one in said if second.id in one.message and "changed meanwhile" in one.message]
    memory.come_up()
    await memory.settle(10)
    assert second.id not in [one.id for one in memory.replicas()]


async def test_idle_deployments_cost_the_database_nothing_more(memory: MemoryFleet) -> None:
    for number in range(10):
        await memory.deploy(f"m{number}", model="/a")
    await memory.settle()
    statements: list[str] = []
    event.listen(memory.store.engine, "before_cursor_execute", lambda *one: statements.append(one[2]))
    await memory.step(1.0)
    assert len(statements) < 8, statements


async def test_replica_of_nobody_is_stopped(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    known = memory.replicas()[0]
    memory.world.replicas["ghost-1-x"] = replace(known, id="ghost-1-x", deployment="ghost")
    memory.world.replicas["m-9-x"] = replace(known, id="m-9-x", revision=9)
    await memory.settle(2)
    assert [one.id for one in memory.replicas()] == [known.id]


async def test_no_room_is_said_and_old_ones_serve_on(memory: MemoryFleet) -> None:
    memory.driver.place = replace(memory.driver.place, cpu=2.0)
    await memory.deploy("m", model="/a", cpu=2.0, rollout={"ready_timeout_s": 10, "keep_previous_s": 0})
    await memory.settle()
    await memory.deploy("m", model="/b", cpu=2.0, rollout={"ready_timeout_s": 10, "keep_previous_s": 0})
    await memory.settle(15)
    assert memory.phase(2) == "failed"
    assert "asked 2 cores" in memory.reason(2)
    assert memory.serving() == {1: 1}
    assert any(event.kind == "no-room" for event in memory.store.events("m"))


async def test_pause_keeps_the_weights_that_a_person_set(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a", traffic="thompson")
    await memory.settle(3)
    await memory.deploy("m", model="/b", traffic="thompson")
    await memory.settle(3)
    await memory.change(memory.store.pause, "m", True, memory.now, {1: 3, 2: 1})
    await memory.settle(3)
    assert memory.weights() == {1: 0.75, 2: 0.25}
    await memory.change(memory.store.pause, "m", False, memory.now)
    await memory.settle(3)
    assert memory.weights() != {1: 0.75, 2: 0.25}


async def test_failing_database_stops_nothing(memory: MemoryFleet) -> None:
    await memory.deploy("m", model="/a")
    await memory.settle()
    table, replicas = memory.controller.tables.version, memory.replicas()
    with sqlite3.connect(memory.folder / "fleet.db") as database:
        database.execute("alter table deployments rename to away")
    await memory.controller.call(memory.store.engine.dispose)
    memory.controller._stale = True
    with pytest.raises(DBAPIError):
        await memory.controller.step(memory.now + 1)
    assert memory.controller.tables.version == table
    assert memory.replicas() == replicas
    with sqlite3.connect(memory.folder / "fleet.db") as database:
        database.execute("alter table away rename to deployments")
    memory.controller._stale = True  # as the loop does after a failed step
    await memory.deploy("m", model="/b")
    await memory.settle()
    assert memory.serving() == {2: 1}
