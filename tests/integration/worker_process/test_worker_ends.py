"""Worker processes that die, are killed or hang, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from started_workers import Starter, X, one, submit, until

from penstock.core.errors import (
    WorkerLost,
)

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("do", "cause"), [("segfault", "SIGSEGV"), ("exit", "exited with code 7")]
)  # fmt: skip
async def test_a_crash_in_user_code_fails_its_batch_as_worker_lost(start: Starter, do: str, cause: str) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match=cause):
        await submit(worker, one(X, do=do))
    assert worker.state == "gone"
    assert worker.free_slots == 0


async def test_a_killed_worker_is_noticed_within_100_ms_and_reaped(start: Starter) -> None:
    worker = await start("obedient")
    exits: list[str] = []
    worker.on_exit(lambda: exits.append("exit"))
    future = submit(worker, one(X, do="sleep", s=100))
    await asyncio.sleep(0.05)
    killed = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL"):
        await future
    assert time.monotonic() - killed < 0.1
    await until(lambda: exits == ["exit"])
    assert not _exists(worker.pid), "a zombie is left"
    assert worker.rss_bytes == 0
    with pytest.raises(WorkerLost):
        await submit(worker, one(X))
    worker.on_exit(lambda: exits.append("again"))
    await until(lambda: exits == ["exit", "again"])


async def test_what_a_worker_forked_goes_with_it_and_does_not_hide_its_end(start: Starter) -> None:
    worker = await start("obedient")
    with pytest.raises(WorkerLost, match="exited with code 0"):
        await submit(worker, one(X, do="grandchild"))
    await until(lambda: not _group_members(worker.pid))


def _group_members(group: int) -> list[int]:
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                members.append(int(entry))
    return members


async def test_workers_die_with_their_front_even_inside_user_code(tmp_path: Path) -> None:
    program = tmp_path / "front.py"
    program.write_text(
        "import asyncio, sys, numpy as np\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from started_workers import spec, one, X, submit\n"
        "from penstock.runtime.workers.process import WorkerProcess\n"
        "async def main():\n"
        "    worker = await WorkerProcess.start(spec('obedient'))\n"
        "    held = submit(worker, one(X, do='hold_lock'))\n"
        "    print(worker.pid, flush=True)\n"
        "    await held\n"
        "asyncio.run(main())\n"
    )
    front = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
    assert front.stdout is not None
    pid = int(await front.stdout.readline())
    front.kill()
    await front.wait()
    await until(lambda: not _alive(pid))


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_signals_of_a_terminal_or_service_manager_leave_workers_alone(start: Starter) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="sleep", s=0.2))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    np.testing.assert_array_equal((await future).outputs["y"], X * 2)
    assert os.getpgid(worker.pid) != os.getpgid(0)


# Stuck


@pytest.mark.parametrize("how", ["stop", "hold_lock"])
async def test_silence_grows_while_the_process_does_not_run(start: Starter, how: str) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="hold_lock" if how == "hold_lock" else "sleep", s=100))
    if how == "stop":
        os.kill(worker.pid, signal.SIGSTOP)
    await until(lambda: worker.silence_s(time.monotonic()) > 0.4)
    worker.kill()
    with pytest.raises(WorkerLost, match="stuck"):
        await future


async def test_an_endless_loop_is_not_silent_but_overdue(start: Starter) -> None:
    worker = await start("obedient")
    batch = one(X, do="spin")
    batch.deadline = time.monotonic() + 0.2
    future = submit(worker, batch)
    assert worker.overdue_s(time.monotonic(), 0.0) <= 0
    silences: list[float] = []

    def overdue() -> bool:
        silences.append(worker.silence_s(time.monotonic()))
        return worker.overdue_s(time.monotonic(), 0.0) > 0.3

    await until(overdue)
    assert max(silences) < 0.4
    worker.kill()
    with pytest.raises(WorkerLost):
        await future


async def test_a_front_that_was_stopped_itself_does_not_blame_the_worker(start: Starter) -> None:
    worker = await start("double")
    now = time.monotonic()
    worker.silence_s(now)
    assert worker.silence_s(now + 3600) <= 2.0


async def test_stacks_are_logged_while_native_code_holds_the_lock(
    start: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start("obedient")
    future = submit(worker, one(X, do="hold_lock"))
    await until(lambda: worker.silence_s(time.monotonic()) > 0.2)
    worker.dump_stacks()
    await until(lambda: any("in predict" in record.getMessage() for record in caplog.records))
    worker.kill()
    with pytest.raises(WorkerLost):
        await future
