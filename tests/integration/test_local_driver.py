"""The local driver with real replicas: how they begin, end, and are known again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_driver import Fleet, eventually, infer, replicas

from penstock.fleet.drivers import Launch
from penstock.fleet.local import leftovers, life, process, record, variables
from penstock.fleet.state import ReplicaState

__all__ = ["replicas"]

READY, DRAINING, FAILED, STARTING = (
    ReplicaState.READY,
    ReplicaState.DRAINING,
    ReplicaState.FAILED,
    ReplicaState.STARTING,
)


async def test_replica_is_ready_under_the_deployments_name_and_starts_once(replicas: Fleet) -> None:
    launch = Launch("one", "deployed", 3, replicas.run("double"), place="here")
    await replicas.driver.start(launch)
    assert [one.state for one in replicas.driver.replicas()] == [STARTING]
    await replicas.driver.start(launch)
    ready = await replicas.until("one", READY)
    assert (ready.deployment, ready.revision, ready.place) == ("deployed", 3, "here")
    assert ready.pid is not None and os.getsid(ready.pid) == ready.pid, "a session of its own"
    assert ready.ready_at is not None and ready.ready_at >= ready.started_at
    assert await asyncio.to_thread(infer, ready, 1.5, 2.0) == [3.0, 4.0]
    assert len(replicas.driver.replicas()) == 1


@pytest.mark.alone
async def test_death_is_seen_at_once_with_its_reason_and_nothing_is_left(replicas: Fleet, figure) -> None:
    seen_s = []
    for id in ("three", "two", "one"):  # the best of some: this process may itself wait for a processor
        ready = await replicas.start(id, "Parent")
        assert len(replicas.processes(id)) >= 3  # front, worker, and what its code has started
        replicas.driver.changed.clear()
        assert ready.pid is not None
        began = time.monotonic()
        os.kill(ready.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            await replicas.driver.changed.wait()
        seen_s.append(time.monotonic() - began)
        failed = replicas.replica(id)
        assert failed is not None and failed.state is FAILED
        assert "SIGKILL" in failed.reason
        if min(seen_s) <= 0.1:
            break
    figure("F9", "death of a replica is seen after", min(seen_s) * 1e3, "ms", goal="≤ 100 ms")
    assert min(seen_s) <= 0.1
    assert not os.path.exists(f"/proc/{ready.pid}"), "it was reaped"  # noqa: ASYNC240  # memory, no disk
    await eventually(lambda: not replicas.processes(), "what the replica had started is ended")
    replicas.driver.forget(id)
    assert replicas.replica(id) is None


async def test_failed_load_tells_the_models_own_words(replicas: Fleet) -> None:
    await replicas.driver.start(Launch("bad", "deployed", 1, replicas.run("Broken")))
    failed = await replicas.until("bad", FAILED)
    assert "exit status 1" in failed.reason
    assert "there are no weights" in failed.reason
    assert failed.ready_at is None and not failed.http


async def test_what_cannot_be_started_fails_with_what_to_do(replicas: Fleet) -> None:
    for number, (run, said) in enumerate([
        (replicas.run("double", secrets={"KEY": "env:NO_SUCH_NAME"}), "no variable NO_SUCH_NAME"),
        (replicas.run("double", secrets={"KEY": "file:/no/such/file"}), "cannot be read"),
        (replicas.run("double", env={"PENSTOCK_HTTP_PORT": "1"}), "write options of the server under `server`"),
        (replicas.run("double", server={"http_port": 80}), "server.http_port is the platform's"),
    ]):  # fmt: skip
        await replicas.driver.start(Launch(f"no{number}", "deployed", 1, run))
        failed = await replicas.until(f"no{number}", FAILED)
        assert said in failed.reason


async def test_request_in_flight_finishes_before_the_end(replicas: Fleet) -> None:
    gate, answer = await replicas.start_gated("one")
    await replicas.driver.stop("one", 30.0)
    await replicas.driver.stop("one", 30.0)  # twice is once
    now = replicas.replica("one")
    assert now is not None and now.state is DRAINING
    await asyncio.sleep(0.2)
    assert not answer.done()
    gate.touch()
    assert await answer == [2.0]
    await replicas.until("one", None)
    assert not replicas.processes("one")


async def test_stuck_replica_is_killed_after_its_grace_with_all_that_it_started(replicas: Fleet) -> None:
    ready = await replicas.start("one", "Parent")
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGSTOP)
    began = time.monotonic()
    await replicas.driver.stop("one", 0.5)
    await replicas.until("one", None)
    assert 0.5 <= time.monotonic() - began < 5.0
    assert not replicas.processes("one")


async def test_replica_that_answers_nobody_is_replaced(replicas: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "_UNREADY_S", 0.5)
    monkeypatch.setattr(life, "_PROBE_S", 0.1)
    monkeypatch.setattr(life, "_PROBE_TIMEOUT_S", 0.5)
    one = await replicas.start("one", "double")
    await asyncio.sleep(1.0)  # longer than it may be silent: one that answers is left alone
    assert one.pid is not None and replicas.replica("one") == one
    os.kill(one.pid, signal.SIGSTOP)
    failed = await replicas.until("one", FAILED)
    assert "it did not answer for 0.5 s" in failed.reason
    await eventually(lambda: not replicas.processes("one"), "it is gone with its workers")


async def test_replica_stopped_while_it_starts_is_gone_and_did_not_fail(replicas: Fleet) -> None:
    await replicas.driver.start(Launch("one", "deployed", 1, replicas.run("double")))
    await replicas.driver.stop("one", 5.0)
    await replicas.until("one", None)
    assert not replicas.processes("one")


async def test_next_controller_adopts_what_runs(replicas: Fleet) -> None:
    ready = await replicas.start("one", "double")
    dead = await replicas.start("two", "double")
    gate, answer = await replicas.start_gated("three")
    await replicas.driver.start(Launch("four", "deployed", 1, replicas.run("double")))
    await eventually(lambda: (one := replicas.replica("four")) is not None and one.pid, "four has a process")
    await replicas.driver.stop("three", 30.0)
    await eventually(lambda: _record(replicas, "three").stop_by is not None, "the stop is written down")
    driver = await replicas.next()
    assert dead.pid is not None
    os.kill(dead.pid, signal.SIGKILL)
    await eventually(lambda: process.identity(dead.pid or 0) is None, "two is dead")

    adopted = {one.id: one for one in await driver.adopt()}
    states = {id: one.state for id, one in adopted.items()}
    assert states.pop("four") in (STARTING, READY)
    assert states == {"one": READY, "two": FAILED, "three": DRAINING}
    assert (adopted["one"].http, adopted["one"].pid, adopted["one"].ready_at) == (ready.http, ready.pid, ready.ready_at)
    assert adopted["two"].reason
    assert await asyncio.to_thread(infer, adopted["one"], 2.0) == [4.0]
    await asyncio.sleep(0.2)  # a second signal to stop would cut the request now
    gate.touch()
    assert await answer == [2.0]
    await replicas.until("three", None)
    four = await replicas.until("four", READY)
    assert await asyncio.to_thread(infer, four, 2.0) == [4.0]
    # Deaths of adopted ones are seen as those of children are.
    driver.changed.clear()
    began = time.monotonic()
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await driver.changed.wait()
    assert time.monotonic() - began <= 1.0  # a child's is measured above, and is seen in the same way
    failed = replicas.replica("one")
    assert failed is not None and failed.state is FAILED


async def test_replica_lives_on_after_its_controllers_death_and_is_adopted(replicas: Fleet, tmp_path: Path) -> None:
    """A controller in a process of its own, so that the replica's parent is really gone."""
    code = f"""
import asyncio, os, signal
from pathlib import Path
from penstock.fleet.drivers import Launch, Settings
from penstock.fleet.drivers.local import Local
from penstock.fleet.spec import Run
async def main():
    driver = Local(Settings(Path({str(replicas.settings.folder)!r}), {replicas.settings.fleet!r}), dict(os.environ))
    await driver.start(Launch("one", "deployed", 1, Run(model={str(replicas.models) + ":double"!r})))
    while driver.replicas()[0].state != "ready":
        await asyncio.sleep(0.02)
    while not 'ready_at":1' in Path({str(replicas.settings.folder)!r}, "replicas/one/replica.json").read_text():
        await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], timeout=60, cwd=tmp_path)
    adopted = {one.id: one for one in await replicas.driver.adopt()}
    assert adopted["one"].state is READY
    assert await asyncio.to_thread(infer, adopted["one"], 2.0) == [4.0]
    await replicas.driver.stop("one", 5.0)
    await replicas.until("one", None)


async def test_process_that_got_a_replicas_number_is_neither_adopted_nor_killed(replicas: Fleet) -> None:
    await replicas.start("one", "double")
    kept = _record(replicas, "one")
    other = sleeper("")
    try:
        driver = await replicas.next()
        await eventually(lambda: (process.identity(other.pid) or kept) is not kept, "the other process runs")
        now = process.identity(other.pid)
        assert now is not None
        os.kill(kept.pid or 0, signal.SIGKILL)
        # The same number, and even the same start: still it is not the replica, as it has not its marker.
        kept.pid, kept.started_ticks = other.pid, now.ticks
        record.write(replicas.settings.folder / "replicas" / "one", kept)
        adopted = await driver.adopt()
        assert [one.state for one in adopted] == [FAILED]
        await driver.stop("one", 0.0)
        await eventually(lambda: not replicas.processes(), "the replica's own processes have ended")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_replica_whose_start_nobody_saw_is_ended(replicas: Fleet) -> None:
    """Its controller died between the start of the process and the record of it."""
    await replicas.start("one", "double")
    driver = await replicas.next()
    kept = _record(replicas, "one")
    kept.pid, kept.http, kept.ready_at = None, "", None
    record.write(replicas.settings.folder / "replicas" / "one", kept)
    assert not await driver.adopt()
    assert not replicas.processes()


async def test_orphans_of_the_fleet_are_ended_and_strangers_are_not(replicas: Fleet) -> None:
    ours = sleeper(f"{replicas.settings.fleet}:lost:0")
    strange = sleeper("another-fleet:lost:0")
    try:
        assert not await replicas.driver.adopt()
        assert await asyncio.to_thread(ours.wait, 10) == -signal.SIGKILL
        assert strange.poll() is None
    finally:
        for one in (ours, strange):
            one.kill()
            one.wait()


async def test_replicas_without_a_controller_can_be_ended(replicas: Fleet) -> None:
    gate, answer = await replicas.start_gated("one")
    await replicas.start("two", "Parent")
    stuck = await replicas.start("three", "double")
    await replicas.driver.close()
    assert stuck.pid is not None
    os.kill(stuck.pid, signal.SIGSTOP)
    ending = asyncio.create_task(asyncio.to_thread(leftovers.end_all, replicas.settings.folder, 2.0))
    await asyncio.sleep(0.3)
    gate.touch()
    assert await answer == [2.0], "what is in flight is answered"
    assert sorted(await ending) == ["one", "three", "two"]
    assert not replicas.processes()
    assert await asyncio.to_thread(leftovers.end_all, replicas.settings.folder, 2.0) == []
    assert not await (await replicas.next()).adopt()


async def test_secrets_reach_the_model_and_nothing_else(replicas: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sesame-from-a-file\n")
    by_name = await replicas.start("one", "Environment", secrets={"SECRET_WORD": "env:WORD"})
    by_file = await replicas.start("two", "Environment", secrets={"SECRET_WORD": f"file:{file}"})
    assert await asyncio.to_thread(infer, by_name, 1.0) == ["sesame-from-the-controller", "unset"]
    assert await asyncio.to_thread(infer, by_file, 1.0) == ["sesame-from-a-file", "unset"]
    for path in replicas.settings.folder.rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes(), path
    for pid in replicas.processes():
        assert "sesame" not in command_line(pid)
    assert "sesame" not in repr(replicas.driver.replicas())


async def test_log_is_followed_and_kept_after_the_end(replicas: Fleet) -> None:
    ready = await replicas.start("one", "Talker")
    seen: list[str] = []

    async def follow() -> None:
        async for line in replicas.driver.logs("one", 100, True):
            seen.append(line)  # noqa: PERF401  # others look at it meanwhile

    following = asyncio.create_task(follow())
    await eventually(lambda: any('"serving"' in line for line in seen), "what was written before is read")
    assert any("loaded and talking" in line for line in seen)
    assert not any('"stopping"' in line for line in seen)
    await replicas.driver.stop(ready.id, 5.0)
    async with asyncio.timeout(10):
        await following
    assert any('"stopping"' in line for line in seen), "what is written later is read too"
    assert [line async for line in replicas.driver.logs("one", 2, False)] == seen[-2:]


async def test_log_of_a_replica_never_grows_beyond_its_bound(replicas: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await replicas.start("one", "double")
    log = replicas.settings.folder / "replicas" / "one" / "log"
    with log.open("ab") as file:
        for number in range(20):
            file.write(b"%d " % number + b"x" * (1 << 20) + b"\n")
    await eventually(lambda: log.stat().st_size < 1 << 20, "the log was cut")
    assert sum(one.stat().st_size for one in log.parent.glob("log*")) <= 9 << 20
    last = [line async for line in replicas.driver.logs("one", 1, False)]
    assert last[0].startswith("19 ")


def sleeper(marker: str) -> subprocess.Popen[bytes]:
    code = "import time; time.sleep(600)"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, variables.MARKER: marker})


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


def _record(fleet: Fleet, id: str) -> record.Record:
    kept = record.read(fleet.settings.folder / "replicas" / id)
    assert kept is not None
    return kept
