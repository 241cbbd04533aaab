"""One replica from its start to its end. Theory of operation:

    begin ─▶ STARTING ─(it says that it serves, and is ready)─▶ READY
                 │                                               │
                 ├──────────────── stop ─────────────────────────┤
                 │                                               ▼
                 └───── its process ends ─▶ FAILED          DRAINING ─(its process ends)─▶ gone

Its process is watched by a pidfd: the kernel tells of its end at once, whoever its parent is. What else it has started
is found by its control groups and its marker, and ended after it. All methods run on the loop unless they say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from penstock.fleet.local import groups, health, limits, output, pages, process, record
from penstock.fleet.local.announcement import Listener, Serving
from penstock.fleet.local.reasons import reason
from penstock.fleet.local.record import Record
from penstock.fleet.state import Replica, ReplicaState

log = logging.getLogger("penstock.driver")

T = TypeVar("T")

CHANGED = (
    "its files are no longer those that this revision was made of, and a revision never changes: deploy again to serve "
    "the new ones, or put the old ones back"
)
_LOOK_S = 0.02  # between two looks for the line that says it serves
_PROBE_S, _PROBE_TIMEOUT_S = 2.0, 2.0
# Longer than anything that a busy machine does to a probe: a replica is killed for it, with what it has in flight.
_UNREADY_S = 30.0
_POLL_S = 0.05  # of a process that no pidfd can be had for
_LAST_S = 5.0  # for what is ending when the driver closes
_LINES = 200  # read for a reason


class Life:
    """One replica. `changed` is called whenever `replica` would answer differently."""

    def __init__(self, folder: Path, kept: Record, threads: ThreadPoolExecutor, changed: Callable[[], None]) -> None:
        self.record = kept
        self.folder = folder
        self.state = ReplicaState.FAILED if kept.reason else ReplicaState.STARTING
        self.ended = asyncio.Event()  # nothing of it is left
        self._threads = threads
        self._changed = changed
        self._pidfd: int | None = None
        self._begun = asyncio.Event()  # there is a process, or there will be none
        self._died = asyncio.Event()
        self._ending = False
        self._kill_at = asyncio.Event()  # the time of grace was changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def replica(self) -> Replica:
        return record.replica(self.record, self.state)

    @property
    def alive(self) -> bool:
        return not self._died.is_set() and self.state is not ReplicaState.FAILED

    def begin(self, start: Coroutine[Any, Any, process.Identity]) -> None:
        """Starts it. What `start` raises is its reason to have failed."""
        self._spawn(self._begin(start))

    def take_over(self, pidfd: int) -> None:
        """Goes on with a process that an earlier controller started."""
        self._begun.set()
        self._watch(pidfd)
        if self.record.reason:
            self._spawn(self._end_remains())
        elif self.record.stop_by is not None:
            self._set(ReplicaState.DRAINING)
            self._spawn(self._stop(adopted=True))
        elif self.record.http:
            limits.begin_share(self.record)
            self._set(ReplicaState.READY)
            self._spawn(self._look_after())
        else:
            self._spawn(self._come_up())

    async def stop(self, grace_s: float) -> None:
        """Asks it to stop, and sees to it that it does within `grace_s`. A second call may only shorten the time. From
        the return on, a next controller knows of it too."""
        if self.ended.is_set() or self.state is ReplicaState.FAILED:
            return
        by = time.monotonic() + grace_s  # the same clock for all processes since boot
        first = self.record.stop_by is None
        self.record.stop_by = by if self.record.stop_by is None else min(by, self.record.stop_by)
        self._kill_at.set()
        if first:
            self._set(ReplicaState.DRAINING)
        await self._write()
        if first:
            self._spawn(self._stop())

    async def close(self) -> None:
        """Lets go of it; it goes on. What is ending is seen to its end, as far as that takes no time."""
        if self._died.is_set() or self._ending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self.ended.wait()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._unwatch()

    def was_found_dead(self) -> None:
        """Goes on with one that ended before this controller came, or that failed and nobody has heard of it."""
        if self.record.ended_at is not None:
            self._died.set()
            self.ended.set()
            self._changed()
        else:
            self._on_end()

    def tend(self) -> str:
        """What is to be done a few times a second; in a thread. Gives back why it has to be ended, or ""."""
        with contextlib.suppress(OSError):
            if output.bound(self.folder):
                log.info("replica_log_cut", extra={"replica": self.record.id, "kept_bytes": output.BOUND_BYTES})
        return limits.broken(self.record) if self.alive else ""

    def files(self) -> list[str]:
        """What it has mapped and what it serves; in a thread."""
        running = groups.pids(map(Path, self.record.groups)) or {self.record.pid or 0}
        return pages.files_of(self.record.files, running)

    def keep_log_only(self) -> None:
        """Nobody need hear of it any more; in a thread."""
        self.record.forgotten = True
        with contextlib.suppress(OSError):
            record.write(self.folder, self.record)
            for entry in self.folder.iterdir():
                if entry.name not in (output.NAME, output.OLDER, record.FILE):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    async def fail(self, why: str) -> None:
        """Ends it because of something that it did not notice itself."""
        if self.state is ReplicaState.FAILED or self.record.stop_by is not None:
            return
        self._failed(why)
        await self._end_remains()

    async def _begin(self, start: Coroutine[Any, Any, process.Identity]) -> None:
        try:
            started = await start
            self.record.pid, self.record.started_ticks, self.record.boot = started.pid, started.ticks, started.boot
            pidfd = await self._in_thread(process.open_again, started, self.record.marker)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, OSError | ValueError) and not hasattr(error, "code"):
                log.exception("replica_not_started", extra={"replica": self.record.id})
            self._died.set()
            if self.record.stop_by is None:
                self._failed(f"it could not be started: {error}")
            await self._end_remains()
            return
        finally:
            self._begun.set()
        self._watch(pidfd)
        if self.record.stop_by is None:
            await self._come_up()

    async def _come_up(self) -> None:
        listener = Listener(self.folder / output.NAME, self.record.deployment, self.record.pid)
        while not self._died.is_set():
            if (said := await self._in_thread(listener.look)) is not None:
                await self._ready(said)
                return
            await asyncio.sleep(_LOOK_S)

    async def _ready(self, said: Serving) -> None:
        http = said.http.partition("//")[2]
        while not await health.ready(http, _PROBE_TIMEOUT_S):
            if self._died.is_set():
                return
            await asyncio.sleep(_LOOK_S)
        if self._died.is_set() or self.record.stop_by is not None:
            return
        self.record.http, self.record.grpc, self.record.ready_at = http, said.grpc, time.time()
        self.record.content = {**self.record.content, **said.content}
        limits.begin_share(self.record)
        self._set(ReplicaState.READY)
        log.info(
            "replica_ready",
            extra={**self._fields, "seconds": round(self.record.ready_at - self.record.started_at, 3), "http": http},
        )
        await self._write()
        await self._look_after()

    async def _look_after(self) -> None:
        """Ends a replica that has not been ready for long: it has no worker left, or it is stuck itself."""
        good = self._loop.time()
        while not self._died.is_set() and self.record.stop_by is None:
            answer = await health.ready(self.record.http, _PROBE_TIMEOUT_S)
            now = self._loop.time()
            if answer:
                good = now
            elif now - good > _UNREADY_S:
                did = "said that it is not ready" if answer is False else "did not answer"
                await self.fail(f"it had to be killed: it {did} for {_UNREADY_S:g} s")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_S):
                    await self._died.wait()

    async def _stop(self, adopted: bool = False) -> None:
        await self._begun.wait()
        # A second SIGTERM would cut what is in flight. Whether a controller that died had sent one, its replica knows.
        if not adopted or not self.record.http or await health.ready(self.record.http, _PROBE_TIMEOUT_S):
            self._signal(signal.SIGTERM)
        while not self._died.is_set() and (left := (self.record.stop_by or 0.0) - time.monotonic()) > 0:
            self._kill_at.clear()
            waits = [asyncio.ensure_future(self._died.wait()), asyncio.ensure_future(self._kill_at.wait())]
            try:
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if not self._died.is_set():
            log.warning("replica_killed", extra={**self._fields, "reason": "it did not stop within its time of grace"})
            await self._kill()
            await self._died.wait()

    def _watch(self, pidfd: int | None) -> None:
        if pidfd is None:  # it is gone already, or the kernel gives none
            self._spawn(self._poll())
            return
        self._pidfd = pidfd
        self._loop.add_reader(pidfd, self._on_end)

    async def _poll(self) -> None:
        while (pid := self.record.pid) is not None and (now := process.identity(pid)) is not None:
            if now.ticks != self.record.started_ticks:
                break
            await asyncio.sleep(_POLL_S)
        self._on_end()

    def _on_end(self) -> None:
        """Its process has ended."""
        self._unwatch()
        if self._died.is_set():
            return
        self._died.set()
        status = _reap(self.record.pid)
        kills = groups.kills_for_memory(map(Path, self.record.groups))
        if self.record.stop_by is None and self.state is not ReplicaState.FAILED:
            lines = output.last_lines(self.folder, _LINES)
            why = reason(process.in_words(status), kills, self.record.memory_bytes, lines)
            if self.record.pinned and self.record.ready_at is None and "sha256 expects" in why:
                why = f"{CHANGED}\n{why}"
            self._failed(why)
        self._spawn(self._end_remains())

    async def _end_remains(self) -> None:
        """Ends all that it has started, and takes its groups away."""
        if self._ending:
            return
        self._ending = True
        await self._kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self._gone()
        await self._in_thread(groups.remove, [Path(one) for one in self.record.groups])
        self.record.ended_at = time.time()
        self.ended.set()
        await self._write()
        self._changed()

    async def _gone(self) -> None:
        if self._pidfd is not None:
            await self._died.wait()

    async def _kill(self) -> None:
        """SIGKILL to its process and to all that it has started."""
        self._signal(signal.SIGKILL)
        if not await self._in_thread(_kill_started, self.record.marker, [Path(one) for one in self.record.groups]):
            log.warning("replica_left_processes", extra=self._fields)

    def _signal(self, number: int) -> None:
        """On the loop alone, which also closes the pidfd: its number may be another replica's afterwards."""
        if (pidfd := self._pidfd) is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)
        elif self.record.pid is not None and not self._died.is_set():
            now = process.identity(self.record.pid)
            if now is not None and now.ticks == self.record.started_ticks:
                with contextlib.suppress(OSError):
                    os.kill(self.record.pid, number)

    def _failed(self, why: str) -> None:
        self.record.reason = why
        self._set(ReplicaState.FAILED)
        log.warning("replica_failed", extra={**self._fields, "reason": why})

    def _set(self, state: ReplicaState) -> None:
        self.state = state
        self._changed()

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    async def _write(self) -> None:
        try:
            await self._in_thread(record.write, self.folder, self.record)
        except FileNotFoundError:
            pass  # it has not begun
        except OSError as error:  # it runs all the same; only a next controller would know less of it
            log.warning("replica_not_recorded", extra={**self._fields, "error": error.strerror})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("replica_task_failed", extra=self._fields, exc_info=error)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._threads, functools.partial(call, *arguments))

    @property
    def _fields(self) -> dict[str, object]:
        return {
            "replica": self.record.id, "deployment": self.record.deployment, "revision": self.record.revision,
            "pid": self.record.pid,
        }  # fmt: skip


def _kill_started(marker: str, folders: list[Path]) -> bool:
    groups.kill(folders)
    return process.kill_all(marker)


def _reap(pid: int | None) -> int | None:
    """The `returncode` of a child of this process; None for an adopted one."""
    if pid is not None:
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
    return None
