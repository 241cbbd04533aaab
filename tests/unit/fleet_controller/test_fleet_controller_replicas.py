"""Replicas that the controller replaces, adds, removes and adopts."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
from memory_fleet import MemoryFleet
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from penstock.fleet.routes import Load, Report


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
