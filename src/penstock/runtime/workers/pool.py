"""Keeps the worker processes of one version: starts them, watches them, replaces the dead and the stuck.

Theory of operation. Every seat has at most one process. `start` fills the first seat and returns, so that the version
can answer; `grow` fills the others. A process that ends without being told to is replaced: at once the first time, then
after a delay that doubles with each death in a row, up to half a minute, and starts over after a minute of health. A
replacement is used only after it has answered a warm-up. The watchdog looks four times a second for workers whose
heartbeat has stopped (stopped process, a loop that holds the GIL) or that compute far beyond their batch's deadline;
it saves their stacks into the log and kills them, which then counts as a death.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from penstock.core.errors import LoadError, PenstockError
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.process import WorkerProcess

log = logging.getLogger("penstock.pool")

_WATCH_S = 0.25
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 30.0
_HEALTHY_S = 60.0  # after so long without a death the next one is replaced at once again


class Pool:
    """The worker processes of one loaded version."""

    def __init__(
        self, make_spec: Callable[[int], LoadSpec], size: int, *, load_timeout_s: float, hang_s: float,
        on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        self.size = size
        self.restarts = 0
        self.check: Callable[[WorkerProcess], Awaitable[None]] | None = None  # the warm-up of every later process
        self.on_free: Callable[[], None] = _nothing  # called when a stream has given its slot back
        self._make_spec = make_spec
        self._load_timeout_s = load_timeout_s
        self._hang_s = hang_s
        self._on_change = on_change
        self._seats: list[WorkerProcess | None] = [None] * size
        self._deaths_in_row = 0
        self._last_death = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._last_error = ""

    @property
    def workers(self) -> list[WorkerProcess]:
        """The live, warmed processes, by seat."""
        return [worker for worker in self._seats if worker is not None]

    async def start(self) -> WorkerProcess:
        """The first process, loaded but not warmed; the caller does that. Raises: LoadError."""
        worker = await self._launch(0)
        self._seats[0] = worker
        self._spawn(self._watch())
        return worker

    def grow(self) -> None:
        """Fills the remaining seats in the background."""
        for seat in range(1, self.size):
            self._spawn(self._fill(seat, 0.0))

    def status(self) -> list[dict[str, object]]:
        """One row per seat, for statistics and the console."""
        return [
            {"index": seat, "state": "starting", "reason": self._last_error}
            if worker is None
            else {
                "index": seat, "state": "ready", "pid": worker.pid, "device": worker.device,
                "batches": worker.batches, "rss_bytes": worker.rss_bytes,
            }
            for seat, worker in enumerate(self._seats)
        ]  # fmt: skip

    async def close(self, grace_s: float) -> None:
        """Returns when every process is gone; each finishes what it holds within `grace_s`."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        workers = self.workers
        self._seats = [None] * self.size
        await asyncio.gather(*self._tasks, *(worker.close(grace_s) for worker in workers), return_exceptions=True)

    async def _launch(self, seat: int) -> WorkerProcess:
        worker = await WorkerProcess.start(self._make_spec(seat), load_timeout_s=self._load_timeout_s)
        worker.on_exit(lambda: self._died(seat, worker))
        worker.on_free(lambda: self.on_free())
        return worker

    def _died(self, seat: int, worker: WorkerProcess) -> None:
        if self._closing or self._seats[seat] is not worker:
            return
        self._seats[seat] = None
        self._on_change()
        now = time.monotonic()
        self._deaths_in_row = 0 if now - self._last_death > _HEALTHY_S else self._deaths_in_row + 1
        self._last_death = now
        self.restarts += 1
        delay_s = 0.0 if self._deaths_in_row == 0 else self._backoff_s()
        log.warning("worker_replaced", extra={"seat": seat, "pid": worker.pid, "delay_s": delay_s})
        self._spawn(self._fill(seat, delay_s))

    def _backoff_s(self) -> float:
        return float(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(self._deaths_in_row - 1, 16)))

    async def _fill(self, seat: int, delay_s: float) -> None:
        """Tries until the seat has a warmed process."""
        while not self._closing:
            await asyncio.sleep(delay_s)
            worker: WorkerProcess | None = None
            try:
                worker = await self._launch(seat)
                if self.check is not None:
                    async with asyncio.timeout(self._load_timeout_s):
                        await self.check(worker)
                if worker.exited:
                    raise LoadError("the worker ended during its warm-up")
            except (PenstockError, TimeoutError) as error:
                self._last_error = str(error) or f"no answer to the warm-up within {self._load_timeout_s:g} s"
                self._deaths_in_row += 1
                delay_s = self._backoff_s()
                log.error("worker_start_failed", extra={"seat": seat, "error": self._last_error, "retry_in_s": delay_s})
                if worker is not None:
                    await worker.close(0.0)
                continue
            except BaseException:
                if worker is not None:
                    await worker.close(0.0)
                raise
            self._last_error = ""
            self._seats[seat] = worker
            self._on_change()
            return

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            now = time.monotonic()
            for worker in self.workers:
                if worker.silence_s(now) > self._hang_s or worker.overdue_s(now) > self._hang_s:
                    log.error(
                        "worker_stuck",
                        extra={
                            "pid": worker.pid,
                            "silence_s": round(worker.silence_s(now), 1),
                            "overdue_s": round(max(0.0, worker.overdue_s(now)), 1),
                        },
                    )
                    worker.dump_stacks()
                    await asyncio.sleep(_WATCH_S)  # time for the signal handler to write them
                    worker.kill()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                try:
                    await work
                except Exception:
                    log.exception("pool_task_failed")

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _nothing() -> None:
    return
