"""Many models in less memory than they take together: which versions are in memory, and how one comes back.

Theory of operation. Every version is loaded once, which shows that it works and how large it is. When there is no room
for it, it rests: it keeps its place in the tables, its signature, queue and figures, and gives the rest back. A request
for a resting version waits in that version's queue, within its deadline and the queue's bound, and wakes it: however
many wait, it is loaded once. Wakes take their turn in the order of their first request. Each makes room (`lifecycle.
to_rest`: the least recently used that hold no request, and no more of them than needed), waits for room when all others
are in use, and loads. A version that was woken holds the request that woke it, so it cannot be put to rest between its
load and its first use; and as every load answers at least that, all get on even when their working set is far larger
than the memory.

Versions whose load fails rest on, and fail what waited; those in memory are not touched by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass

from penstock.core.errors import LoadError, NotReady, PenstockError
from penstock.runtime import lifecycle
from penstock.runtime.version import LoadedVersion
from penstock.runtime.workers.heap import give_back
from penstock.telemetry.metrics import ResidencyFigures

log = logging.getLogger("penstock.residency")

_LOOK_S = 0.25  # a version that holds no request any more says so; others, such as one that moved, are looked at
_LONGEST_LOOK_S = 30.0
_TRIM_S = 5.0  # between two times that freed memory goes back to the system: the next load mostly takes it again
_LONG_LOAD_S = 5.0  # many times what the models take of which there are too many for the memory
_PAUSE_S = 1.0  # after a load that failed: requests are told at once, instead of each trying again


@dataclass(slots=True)
class _Entry:
    version: LoadedVersion
    since: float  # when it came into memory
    counted: bool = True  # its memory counts; not while it rests
    leaving: asyncio.Task[None] | None = None  # it gives its memory back
    failed_at: float = float("-inf")


class Residency:
    """Watches over the memory of all versions. Without a budget and an idle time it does nothing."""

    def __init__(self, budget_bytes: int | None = None, idle_s: float | None = None, cores: int = 1) -> None:
        self.active = budget_bytes is not None or idle_s is not None
        self._budget = budget_bytes
        self._idle_s = idle_s
        self._entries: dict[int, _Entry] = {}
        self._places: dict[LoadedVersion, int] = {}
        self._numbers = 0
        self._reserved = 0  # for loads under way
        self._turn = asyncio.Lock()  # fair: in the order of asking
        self._loads = asyncio.Semaphore(max(1, cores - 1))  # one core is left for those who are answered meanwhile
        self._waking: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_task: asyncio.Task[None] | None = None
        self._trimmed_at = float("-inf")
        self._loaded = 0
        self._failed = 0
        self._evicted = {"memory": 0, "idle": 0}

    def figures(self) -> ResidencyFigures | None:
        """What metrics show of it; None when it does nothing."""
        if not self.active:
            return None
        counted = [entry.version for entry in self._entries.values() if entry.counted]
        return ResidencyFigures(
            len(counted), self._used(), self._budget or 0, self._loaded, self._failed, dict(self._evicted)
        )

    def take_in(self, version: LoadedVersion) -> None:
        """Takes a version over that has just been loaded. Without room beside the others it rests from now on: nobody
        has asked for it yet.

        Raises:
            LoadError: it is larger than all the memory there may be.
        """
        if not self.active or version.revive is None:
            return
        self._check_size(version)
        self._numbers += 1
        number = self._numbers
        entry = self._entries[number] = _Entry(version, time.monotonic())
        self._places[version] = number
        version.copy = None  # a copy in another process would take memory that is not counted
        version.batcher.on_starved = lambda: self._wake(number)
        if self._budget is not None and self._used() + self._reserved > self._budget:
            self._put_to_rest(entry)
        if self._idle_s is not None and self._idle_task is None:
            self._idle_task = asyncio.get_running_loop().create_task(self._look_for_idle(self._idle_s))

    def let_go(self, version: LoadedVersion) -> None:
        """Forgets a version that has been closed."""
        number = self._places.pop(version, None)
        if number is not None:
            del self._entries[number]
            version.batcher.on_starved = None
            if number in self._waking:
                self._waking[number].cancel()  # what it has loaded by now is given back

    async def close(self) -> None:
        """Stops waking, and returns when what was under way has ended."""
        tasks = [*self._waking.values(), *self._tasks, *([self._idle_task] if self._idle_task else [])]
        for task in tasks:
            if task not in self._tasks:  # what gives memory back is left to end
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- waking ---

    def _wake(self, number: int) -> None:
        entry = self._entries.get(number)
        if entry is None or number in self._waking or not entry.version.resting:
            return
        if time.monotonic() - entry.failed_at < _PAUSE_S:
            entry.version.batcher.fail_waiting(_not_ready(entry))
            return
        self._waking[number] = task = asyncio.get_running_loop().create_task(self._bring_back(entry))
        task.add_done_callback(lambda _: self._woken(number))

    def _woken(self, number: int) -> None:
        del self._waking[number]
        entry = self._entries.get(number)
        if entry is not None and entry.version.resting and entry.version.batcher.queued:
            self._wake(number)  # it came after the last one that was waited for had left

    async def _bring_back(self, entry: _Entry) -> None:
        version = entry.version
        began = time.monotonic()
        reserved = 0
        try:
            if entry.leaving is not None:  # not awaited itself: it goes on when this is cancelled, or when it fails
                await asyncio.wait({entry.leaving})
            async with self._turn:
                if not await self._make_room(version):
                    return
                reserved = version.size_bytes
                self._reserved += reserved
            async with self._place():
                assert version.revive is not None
                loading = time.monotonic()
                await version.revive()
        except Exception as error:
            self._failed += 1
            entry.failed_at = time.monotonic()
            version.not_woken = str(error) or type(error).__name__
            log.error(
                "model_not_woken", extra={"model": version.name, "version": version.number, "error": version.not_woken},
                exc_info=not isinstance(error, PenstockError | TimeoutError | MemoryError | OSError),
            )  # fmt: skip
            version.batcher.fail_waiting(_not_ready(entry))
        else:
            now = time.monotonic()
            entry.since, entry.counted = now, True
            version.not_woken = ""
            self._reserved, reserved = self._reserved - reserved, 0
            self._make_up_for_growth()
            version.loaded_s = now - loading
            self._loaded += 1
            log.debug(
                "model_woken",
                extra={
                    "model": version.name,
                    "version": version.number,
                    "seconds": round(now - began, 4),
                    "bytes": version.size_bytes,
                },
            )
        finally:
            self._reserved -= reserved

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """A place among those who load, for a while: one that takes long waits for more than a core, and one that hangs
        must not hold all others up."""
        await self._loads.acquire()
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._loads.release()

        long = asyncio.get_running_loop().call_later(_LONG_LOAD_S, leave)
        try:
            yield
        finally:
            long.cancel()
            leave()

    async def _make_room(self, version: LoadedVersion) -> bool:
        """Whether there is room for it; false when nobody waits for it any more. Raises: LoadError, as `take_in`."""
        self._check_size(version)  # it may have grown, in worker processes
        while version.batcher.in_flight:
            if self._budget is None:
                return True
            chosen = lifecycle.to_rest(self._residents(), version.size_bytes + self._reserved, self._budget)
            if chosen is not None:
                leaving = [self._put_to_rest(self._entries[number]) for number in chosen]
                self._evicted["memory"] += len(chosen)
                if leaving:  # so that both are never there at once
                    await asyncio.wait(leaving)
                return True
            await self._somebody_idle()
        return False

    def _make_up_for_growth(self) -> None:
        """A version is measured at each load, and may be larger than the room that was made for it."""
        if self._budget is not None:
            for number in lifecycle.to_rest(self._residents(), self._reserved, self._budget) or ():
                self._put_to_rest(self._entries[number])
                self._evicted["memory"] += 1

    def _check_size(self, version: LoadedVersion) -> None:
        if self._budget is not None and version.size_bytes > self._budget:
            raise LoadError(
                f"model '{version.name}' takes {version.size_bytes} bytes, and models_memory_bytes is {self._budget}"
            )

    async def _somebody_idle(self) -> None:
        """Returns when a version in memory has answered all it held, or after a moment."""
        changed = asyncio.Event()
        asked = [entry.version.batcher for entry in self._entries.values() if entry.counted]
        asked = [batcher for batcher in asked if batcher.in_flight and batcher.on_idle is None]
        for batcher in asked:
            batcher.on_idle = changed.set
        try:
            async with asyncio.timeout(_LOOK_S):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            for batcher in asked:
                if batcher.on_idle == changed.set:  # else it is being closed
                    batcher.on_idle = None

    # --- resting ---

    def _put_to_rest(self, entry: _Entry) -> asyncio.Task[None]:
        entry.counted = False
        entry.leaving = task = self._spawn(entry.version.rest())

        def left(task: asyncio.Task[None]) -> None:
            entry.leaving = None
            if not task.cancelled() and (error := task.exception()) is not None:  # the model's own, while it closed
                log.error("model_not_closed", exc_info=error, extra={"model": entry.version.name})
            now = time.monotonic()
            if now - self._trimmed_at >= _TRIM_S:
                self._trimmed_at = now
                self._spawn(asyncio.to_thread(give_back))

        task.add_done_callback(left)
        return task

    async def _look_for_idle(self, idle_s: float) -> None:
        while True:
            await asyncio.sleep(min(max(idle_s / 4, 0.05), _LONGEST_LOOK_S))
            for number in lifecycle.idle(self._residents(), time.monotonic(), idle_s):
                self._put_to_rest(self._entries[number])
                self._evicted["idle"] += 1

    def _residents(self) -> list[lifecycle.Resident]:
        residents = []
        for number, entry in self._entries.items():
            version = entry.version
            if entry.counted:
                busy = version.batcher.in_flight > 0 or version.moving or version.closing
                used = max(entry.since, version.metrics.last_finished)
                residents.append(lifecycle.Resident(number, version.size_bytes, used, busy))
        return residents

    def _used(self) -> int:
        return sum(entry.version.size_bytes for entry in self._entries.values() if entry.counted)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _not_ready(entry: _Entry) -> NotReady:
    version = entry.version
    return NotReady(
        f"model '{version.name}' version {version.number} was to be loaded again and was not: {version.not_woken}",
        retry_after_s=_PAUSE_S,
    )
