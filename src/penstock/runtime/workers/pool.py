"""Keeps the worker processes of one version: starts them, watches them, replaces the dead and the stuck.

Theory of operation. Every seat has at most one process. `start` fills the first seat and returns, so that the version
can answer; `grow` fills the others. A process that ends without being told to is replaced: at once the first time, then
after a delay that doubles with each death in a row at its seat, and starts over after a minute of health. The delay
grows up to half a minute for processes that end before they have answered anything, which is a loop without an end; it
stays under a second for those that answered, whose loss costs more than their start. A replacement is used only after
it has answered a warm-up.

The watchdog looks once a heartbeat. A process that has missed two, or that somebody has stopped, gets nothing new while
that lasts. One that stays silent (a loop that holds the interpreter lock), that stays stopped, or that computes far
beyond its batch's deadline and the model's own is killed, after its stacks are saved in the log and if a second look
finds it so still. This then counts as a death.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from penstock.core.errors import LoadError, PenstockError
from penstock.runtime.workers import elastic
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.process import WorkerProcess

log = logging.getLogger("penstock.pool")

_WATCH_S = 0.25
_SILENT_LOOKS = 2  # without a beat between them: then it gets nothing new
_STOPPED_LOOKS = 2  # one may fall between two signals that continue a front and its workers
_STOPPED = -1
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 30.0
_LONGEST_DELAY_OF_USEFUL_S = 0.8  # so that a replacement is started within a second
_HEALTHY_S = 60.0  # after so long without a death the next one is replaced at once again


@dataclass(slots=True)
class _Seat:
    worker: WorkerProcess | None = None
    answered: int = 0  # what the worker had answered when it was seated: its warm-up
    stopped: int = 0  # looks in a row that found it stopped
    down: bool = False  # silent, and not because it computes
    deaths_in_row: int = -1  # beyond the first, which costs no delay
    last_death: float = 0.0
    restarts: int = 0
    last_error: str = ""


class Pool:
    """The worker processes of one loaded version."""

    def __init__(
        self, make_spec: Callable[[int], LoadSpec], size: int, *, load_timeout_s: float, timeout_s: float,
        hang_s: float, on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        """Code may compute for `timeout_s`, or until its batch's deadline if that is later, and `hang_s` more."""
        self.least = self.size = size
        self.check: Callable[[WorkerProcess], Awaitable[None]] | None = None  # the warm-up of every later process
        self.on_free: Callable[[], None] = _nothing  # called when a worker has room again without having answered
        self._make_spec = make_spec
        self._load_timeout_s = load_timeout_s
        self._hang_s = hang_s
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._seats = [_Seat() for _ in range(size)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: set[asyncio.Task[None]] = set()  # the ends of processes that are needed no more
        self._closing = False

    @property
    def workers(self) -> list[WorkerProcess]:
        """The live, warmed processes, by seat."""
        return [seat.worker for seat in self._seats if seat.worker is not None]

    @property
    def answers(self) -> bool:
        """Whether any process computes, or would if it were given a batch."""
        return any(seat.worker is not None and not seat.down for seat in self._seats)

    async def start(self) -> WorkerProcess:
        """The first process, loaded but not warmed; the caller does that. Raises: LoadError."""
        worker = await self._launch(0)
        self._sit(self._seats[0], worker)
        self._spawn(self._watch())
        return worker

    def adapt(self, most: int, waited_s: Callable[[], float]) -> None:
        """From now on there are as many processes as the load needs, from `size` to `most` (see `elastic`). `waited_s`
        is how long the request has waited that waits longest."""
        self._spawn(self._adapt(self.least, most, waited_s))

    async def _adapt(self, least: int, most: int, waited_s: Callable[[], float]) -> None:
        memory = elastic.Memory()
        while True:
            await asyncio.sleep(elastic.LOOK_S)
            workers = self.workers
            live = sum(1 for worker in workers if not worker.silent)
            busy = sum(1 for worker in workers if worker.holds)
            seen = elastic.Seen(time.monotonic(), self.size, live, busy, waited_s())
            size, memory = elastic.decide(seen, least, most, memory)
            if size != self.size:
                log.info("workers_changed", extra={**self._fields(), "from": self.size, "to": size})
                self._resize(size)

    def _fields(self) -> dict[str, object]:
        context = self._make_spec(0).context
        return {"model": context.name, "version": context.version}

    def _resize(self, size: int) -> None:
        self.size = size
        for index in range(len(self._seats), size):
            self._seats.append(_Seat())
            self._spawn(self._fill(index, 0.0))
        leaving = self._seats[size:]
        del self._seats[size:]
        now = time.monotonic()
        for worker in [seat.worker for seat in leaving]:
            if worker is not None:  # it ends what it holds, as long as that may take
                grace_s = max(0.0, worker.left_s(now, self._timeout_s)) + self._hang_s
                task = asyncio.get_running_loop().create_task(worker.close(grace_s))
                self._draining.add(task)
                task.add_done_callback(self._draining.discard)
        if leaving:
            self._on_change()  # from now on they get nothing new

    async def _end_draining(self, grace_s: float) -> None:
        if self._draining:
            await asyncio.wait(self._draining, timeout=grace_s)
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)

    def grow(self) -> None:
        """Fills the remaining seats in the background."""
        for index in range(1, self.size):
            self._spawn(self._fill(index, 0.0))

    def status(self) -> list[dict[str, object]]:
        """One row per seat, for statistics and the console."""
        return [
            {"index": index, "state": "starting", "reason": seat.last_error, "restarts": seat.restarts}
            if seat.worker is None
            else {
                "index": index, "state": "silent" if seat.worker.silent else "ready", "pid": seat.worker.pid,
                "device": seat.worker.device, "batches": seat.worker.batches, "restarts": seat.restarts,
                "rss_bytes": seat.worker.rss_bytes,
            }
            for index, seat in enumerate(self._seats)
        ]  # fmt: skip

    async def close(self, grace_s: float) -> None:
        """Returns when every process is gone; each finishes what it holds within `grace_s`."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        workers = self.workers
        for seat in self._seats:
            seat.worker = None
        closing = (self._end_draining(grace_s), *(worker.close(grace_s) for worker in workers))
        await asyncio.gather(*self._tasks, *closing, return_exceptions=True)

    async def _launch(self, index: int) -> WorkerProcess:
        seat = self._seats[index]
        spec = self._make_spec(index)
        worker = await WorkerProcess.start(
            spec, python=spec.python or sys.executable, load_timeout_s=self._load_timeout_s
        )
        worker.on_exit(lambda: self._died(index, seat, worker))
        worker.on_free(lambda: self.on_free())
        return worker

    def _sit(self, seat: _Seat, worker: WorkerProcess) -> None:
        seat.worker, seat.answered, seat.last_error = worker, worker.answered, ""
        seat.stopped, seat.down = 0, False

    def _died(self, index: int, seat: _Seat, worker: WorkerProcess) -> None:
        if self._closing or seat.worker is not worker or not self._has(index, seat):
            return
        seat.worker = None
        self._on_change()
        now = time.monotonic()
        seat.deaths_in_row = 0 if now - seat.last_death > _HEALTHY_S else seat.deaths_in_row + 1
        seat.last_death = now
        seat.restarts += 1
        useful = worker.answered > seat.answered
        delay_s = _backoff_s(seat.deaths_in_row, _LONGEST_DELAY_OF_USEFUL_S if useful else _LONGEST_DELAY_S)
        log.warning(
            "worker_replaced",
            extra={"seat": index, "pid": worker.pid, "cause": worker.cause, "delay_s": delay_s},
        )
        self._spawn(self._fill(index, delay_s))

    def _has(self, index: int, seat: _Seat) -> bool:
        """Whether the seat is still one of the pool's: it has fewer when the load needs fewer."""
        return index < len(self._seats) and self._seats[index] is seat

    async def _fill(self, index: int, delay_s: float) -> None:
        """Tries until the seat has a warmed process, or has gone."""
        if index >= len(self._seats):
            return
        seat = self._seats[index]
        failures = 0
        while not self._closing:
            await asyncio.sleep(delay_s)
            if not self._has(index, seat):
                return
            worker: WorkerProcess | None = None
            try:
                worker = await self._launch(index)
                if self.check is not None:
                    async with asyncio.timeout(self._load_timeout_s):
                        await self.check(worker)
                if worker.exited:
                    raise LoadError("the worker ended during its warm-up")
            except Exception as error:  # whatever it was (no thread can be started, say), the seat is to be filled
                if not isinstance(error, PenstockError | TimeoutError):
                    log.exception("worker_start_broken", extra={"seat": index})
                seat.last_error = str(error) or f"no answer to the warm-up within {self._load_timeout_s:g} s"
                failures += 1
                delay_s = _backoff_s(failures, _LONGEST_DELAY_S)
                log.error("worker_start_failed", extra={"seat": index, "error": seat.last_error, "retry_in_s": delay_s})
                self._on_change()
                if worker is not None:
                    await worker.close(0.0)
                continue
            except BaseException:
                if worker is not None:
                    await worker.close(0.0)
                raise
            if not self._has(index, seat):
                await worker.close(0.0)
                return
            self._sit(seat, worker)
            self._on_change()
            return

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if stuck := self._look_at_all():
                await asyncio.sleep(_WATCH_S)  # time for the signal handlers to write the stacks
                now = time.monotonic()
                for seat, worker, answered in stuck:
                    if seat.worker is not worker:
                        continue  # dead, and replaced
                    # The signal that saves the stacks may have woken it for a moment, so a beat alone says little.
                    same = answered == _STOPPED or (worker.holds and answered == worker.answered)
                    if same or self._is_stuck(worker, worker.silence_s(now), now):
                        worker.kill_stuck()
                    else:  # what it worked on has just ended
                        self._note_silence(seat, worker, silent=False, down=False)

    def _look_at_all(self) -> list[tuple[_Seat, WorkerProcess, int]]:
        """The stuck workers with their seats, and what each had answered by now (_STOPPED: somebody stopped it)."""
        stuck: list[tuple[_Seat, WorkerProcess, int]] = []
        now = time.monotonic()
        for seat in self._seats:
            try:
                if (worker := seat.worker) is not None and self._look(seat, worker, now):
                    stuck.append((seat, worker, _STOPPED if seat.stopped else worker.answered))
            except Exception:  # the others are watched all the same, and this one again at the next look
                log.exception("worker_not_watched", extra={"pid": worker.pid if worker else 0})
        return stuck

    def _look(self, seat: _Seat, worker: WorkerProcess, now: float) -> bool:
        """Decides whether a worker gets batches now; True when it is stuck, and its stacks are on their way."""
        silence_s = worker.silence_s(now)
        seat.stopped = seat.stopped + 1 if silence_s > 0 and worker.stopped else 0
        silent = seat.stopped > 0 or silence_s >= _SILENT_LOOKS * max(worker.heartbeat_s, _WATCH_S)
        # A batch in native code that holds the interpreter lock is silent too, and nothing out of the ordinary.
        computes = worker.holds and not seat.stopped and silence_s < self._hang_s / 2
        if silent and not worker.silent:
            log.warning("worker_silent", extra={"pid": worker.pid, "silence_s": round(silence_s, 2)})
        self._note_silence(seat, worker, silent=silent, down=silent and not computes)
        if seat.stopped < _STOPPED_LOOKS and not self._is_stuck(worker, silence_s, now):
            return False
        log.error(
            "worker_stuck",
            extra={
                "pid": worker.pid,
                "silence_s": round(silence_s, 2),
                "overdue_s": round(max(0.0, worker.overdue_s(now, self._timeout_s)), 2),
                "stopped": seat.stopped > 0,
                "threads": worker.states(),
            },
        )
        worker.dump_stacks()
        worker.silent = True  # nothing new for what may be killed in a moment
        return True

    def _is_stuck(self, worker: WorkerProcess, silence_s: float, now: float) -> bool:
        return silence_s > self._hang_s or worker.overdue_s(now, self._timeout_s) > self._hang_s

    def _note_silence(self, seat: _Seat, worker: WorkerProcess, *, silent: bool, down: bool) -> None:
        changed, freed = (silent, down) != (worker.silent, seat.down), worker.silent and not silent
        worker.silent, seat.down = silent, down
        if changed:
            self._on_change()
        if freed:
            self.on_free()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("pool_task_failed", exc_info=error)


def _backoff_s(deaths_in_row: int, longest_s: float) -> float:
    return 0.0 if deaths_in_row <= 0 else float(min(longest_s, _FIRST_DELAY_S * 2 ** min(deaths_in_row - 1, 16)))


def _nothing() -> None:
    return
