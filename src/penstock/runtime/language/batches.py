"""Batches of requests, answered behind everybody who waits (`core.batches.Batches`).

Each batch is a task of this process: it reads its file, answers line by line, at most `AT_ONCE` lines of all batches at
a time, and writes two files. What ends it early (its caller, its window) ends the lines under way and keeps the answers
until then. When the server stops, the batch is gone with all files; until then it says `in_progress`, never an end.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from penstock.core.batches import WINDOW_S, Batch, Fault, LineAnswer, StoredFile
from penstock.core.errors import AlreadyExists, NotFound, NotReady, Overloaded, PenstockError, QuotaExceeded
from penstock.runtime.language.batch_lines import Line, read_lines, unanswered, written
from penstock.runtime.language.kept_files import KEEP_S, Bounds, KeptFiles

log = logging.getLogger("penstock.batches")

AT_ONCE: Final = 16  # as many as engines commonly run together
_LONGEST_PAUSE_S: Final = 30.0  # before a line is tried again
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})

# Answers one line: (endpoint, body, caller, deadline in monotonic seconds).
Answer = Callable[[str, bytes, str, float], Awaitable[LineAnswer]]


@dataclass(slots=True)
class _Job:
    """A batch under way. `work` answers lines; `task` owns it, and the batch's end."""

    owner: str
    batch: Batch
    ends: float  # the loop's clock
    work: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None
    left: list[Line] = field(default_factory=list)  # without an answer yet; the last comes first
    running: dict[str, Line] = field(default_factory=dict)
    good: list[bytes] = field(default_factory=list)
    bad: list[bytes] = field(default_factory=list)
    size_bytes: int = 0  # of both


class BatchRunner:
    """The batches and files of one server. `clock` tells the time of day. Closed by its owner."""

    def __init__(
        self,
        answer: Answer,
        *,
        clock: Callable[[], float] = time.time,
        window_s: float = WINDOW_S,
        bounds: Bounds | None = None,
    ) -> None:
        self._answer = answer
        self._clock = clock
        self._window_s = window_s
        self._bounds = bounds or Bounds()
        self._files = KeptFiles(self._bounds, clock)
        self._jobs: dict[str, _Job] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._closed = False

    async def close(self) -> None:
        """Ends all work, and returns when none is left."""
        self._closed = True
        tasks = [task for job in self._jobs.values() for task in (job.task, job.work) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- files ---

    async def add_file(self, caller: str, name: str, content: bytes, keep_s: float | None = None) -> StoredFile:
        """See `core.batches.Batches`, also of the methods below."""
        return self._files.add(caller, name, content, "batch", keep_s)

    async def file(self, caller: str, id: str) -> StoredFile:
        return self._files.find(caller, id)

    async def files(self, caller: str) -> list[StoredFile]:
        return self._files.of(caller)

    async def content(self, caller: str, id: str) -> bytes:
        return self._files.content(caller, id)

    async def remove_file(self, caller: str, id: str) -> None:
        if self._files.held(caller, id):
            raise AlreadyExists(f"a batch works on the file {id}; cancel it first")
        self._files.remove(caller, id)

    # --- batches ---

    async def create(self, caller: str, endpoint: str, input_file: str, metadata: Mapping[str, str]) -> Batch:
        if self._closed:
            raise NotReady("the server is stopping")
        self._forget_old(caller)
        unfinished = [job for job in self._jobs.values() if job.batch.status not in _ENDED]
        if sum(job.owner == caller for job in unfinished) >= self._bounds.caller_unfinished:
            raise QuotaExceeded(
                f"you have {self._bounds.caller_unfinished} batches that are not finished, the most that one caller "
                "may have", retry_after_s=60,
            )  # fmt: skip
        if len(unfinished) >= self._bounds.all_unfinished:
            raise Overloaded(f"{len(unfinished)} batches are not finished; try again later", retry_after_s=60)
        content = self._files.hold(caller, input_file)
        now = int(self._clock())
        batch = Batch(f"batch_{uuid.uuid4().hex}", endpoint, input_file, now, int(now + self._window_s), dict(metadata))
        loop = asyncio.get_running_loop()
        job = self._jobs[batch.id] = _Job(caller, batch, loop.time() + self._window_s)
        job.work = loop.create_task(self._work(job, content))
        job.task = loop.create_task(self._run(job, job.work))
        return _copy(batch)

    async def batch(self, caller: str, id: str) -> Batch:
        return _copy(self._find(caller, id).batch)

    async def listed(self, caller: str) -> list[Batch]:
        self._forget_old(caller)
        return [_copy(job.batch) for job in reversed(self._jobs.values()) if job.owner == caller]

    async def cancel(self, caller: str, id: str) -> Batch:
        job = self._find(caller, id)
        if job.batch.status in _ENDED:
            raise AlreadyExists(f"the batch is {job.batch.status}; only one that works can be cancelled")
        if job.batch.status in ("validating", "in_progress"):
            self._reach(job, "cancelling")
            if job.work is not None:
                job.work.cancel()
        return _copy(job.batch)

    def _find(self, caller: str, id: str) -> _Job:
        self._forget_old(caller)
        job = self._jobs.get(id)
        if job is None or job.owner != caller:
            raise NotFound(f"No such batch: {id[:128]}")
        return job

    def _forget_old(self, caller: str) -> None:
        """Ended batches go when they are old, or when a caller has too many: the oldest first."""
        now = self._clock()
        ended = [(id, job) for id, job in self._jobs.items() if job.batch.status in _ENDED]
        own = sum(job.owner == caller for _, job in ended)
        for id, job in ended:
            old = now - job.batch.created_at > KEEP_S + self._window_s
            if old or (job.owner == caller and own > self._bounds.caller_batches):
                own -= job.owner == caller
                del self._jobs[id]

    # --- the work ---

    async def _run(self, job: _Job, work: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait({work}, timeout=max(0.0, job.ends - asyncio.get_running_loop().time()))
            expired = not work.done()
        finally:
            work.cancel()
            await asyncio.wait({work})
            self._files.release(job.batch.input_file)
        self._end(job, None if work.cancelled() else work.exception(), expired)
        job.work = job.task = None

    async def _work(self, job: _Job, content: bytes) -> None:
        lines, faults = await asyncio.to_thread(read_lines, content, job.batch.endpoint)
        job.batch.faults += faults
        if faults:
            return
        job.batch.total = len(lines)
        job.left = lines[::-1]
        self._reach(job, "in_progress")
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(lines))):
                group.create_task(self._take(job))

    async def _take(self, job: _Job) -> None:
        while job.left and not job.batch.faults:
            line = job.left.pop()
            id = f"batch_req_{uuid.uuid4().hex}"
            job.running[id] = line
            answer = await self._ask(job, line)
            del job.running[id]
            text = written(id, line, answer)
            succeeded = answer.status == 200
            (job.good if succeeded else job.bad).append(text)
            job.batch.answered += succeeded
            job.batch.refused += not succeeded
            job.size_bytes += len(text)
            if job.size_bytes > self._bounds.caller_bytes // 2:
                job.batch.faults.append(Fault("output_too_large", "the answers take more room than one batch may have"))

    async def _ask(self, job: _Job, line: Line) -> LineAnswer:
        for pause_s in _pauses():
            async with self._at_once:
                answer = await self._answer(job.batch.endpoint, line.body, job.owner, job.ends)
            if answer.again_s is None:
                return answer
            await asyncio.sleep(min(_LONGEST_PAUSE_S, max(pause_s, answer.again_s)))
        raise AssertionError("pauses do not end")

    def _end(self, job: _Job, failure: BaseException | None, expired: bool) -> None:
        batch = job.batch
        if failure is not None:
            log.error("batch_failed", exc_info=failure, extra={"batch": batch.id})
            batch.faults.append(Fault("server_error", "internal error"))
        cancelled = batch.status == "cancelling"
        status = "cancelled" if cancelled else "failed" if batch.faults else "expired" if expired else "completed"
        if status == "completed":
            self._reach(job, "finalizing")
        if status == "expired":
            for id, line in [*job.running.items(), *((f"batch_req_{uuid.uuid4().hex}", one) for one in job.left[::-1])]:
                job.bad.append(unanswered(id, line, "batch_expired", "the batch's window passed before this request"))
            batch.refused = len(job.bad)
        try:
            batch.output_file = self._write(job, job.good, "output")
            batch.error_file = self._write(job, job.bad, "error")
        except PenstockError as error:
            batch.faults.append(Fault("no_room", f"the answers could not be kept: {error.message}"))
            status = "failed"
        self._reach(job, status)
        job.left, job.running, job.good, job.bad = [], {}, [], []

    def _write(self, job: _Job, lines: list[bytes], kind: str) -> str | None:
        if not lines:
            return None
        name = f"{job.batch.id}_{kind}.jsonl"
        return self._files.add(job.owner, name, b"".join(lines), "batch_output").id

    def _reach(self, job: _Job, status: str) -> None:
        job.batch.status = status
        job.batch.reached[status] = int(self._clock())


def _pauses() -> Iterator[float]:
    """Seconds before each further try: 0.1, 0.2, … up to the longest."""
    pause_s = 0.1
    while True:
        yield pause_s
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)


def _copy(batch: Batch) -> Batch:
    return replace(batch, faults=list(batch.faults), reached=dict(batch.reached))
