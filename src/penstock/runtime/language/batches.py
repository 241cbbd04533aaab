"""Batches of requests, answered behind everybody who waits (`core.batches.Batches`).

Each batch is a task of this process: it reads its file, answers line by line, at most `AT_ONCE` lines of all batches at
a time, and writes two files. What ends it early (its caller, its window) ends the lines under way and keeps the answers
until then. An answer counts once it is in the journal. On a shelf that outlives the process, a batch that was not
finished goes on with the lines that the journal lacks; the ids of its files follow from its own, so that writing them
again makes no second ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import msgspec

from penstock.core.batches import WINDOW_S, Batch, Fault, LineAnswer, LineUsage, StoredFile
from penstock.core.errors import AlreadyExists, Internal, NotFound, NotReady, Overloaded, PenstockError, QuotaExceeded
from penstock.runtime.language.batch_lines import Line, entry, name_of, read_entry, read_lines, unanswered, written
from penstock.runtime.language.kept_files import KEEP_S, Bounds, KeptFiles
from penstock.runtime.language.pauses import LONGEST_S, pauses
from penstock.runtime.language.shelves import Journal, Shelf

T = TypeVar("T")

log = logging.getLogger("penstock.batches")

AT_ONCE: Final = 16  # as many as engines commonly run together
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})

# Answers one line: (endpoint, body, caller, deadline in monotonic seconds).
Answer = Callable[[str, bytes, str, float], Awaitable[LineAnswer]]


class _Head(msgspec.Struct):
    """What the shelf keeps of a batch."""

    owner: str
    batch: Batch


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
    names: set[str] = field(default_factory=set)  # of lines that an earlier process answered

    def answered_all(self) -> bool:
        """Whether an earlier process did: only the end was missing."""
        return 0 < self.batch.total <= len(self.names)


class BatchRunner:
    """The batches and files of one server. `clock` tells the time of day. Closed by its owner."""

    def __init__(
        self,
        answer: Answer,
        files: KeptFiles,
        shelf: Shelf,
        journal: Journal,
        clock: Callable[[], float],
        *,
        window_s: float = WINDOW_S,
        bounds: Bounds | None = None,
    ) -> None:
        self._answer = answer
        self._files = files
        self._shelf = shelf
        self._journal = journal
        self._clock = clock
        self._window_s = window_s
        self._bounds = bounds or Bounds()
        self._jobs: dict[str, _Job] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._closed = False

    async def restore(self) -> None:
        """Takes up what the shelf holds; what is unfinished goes on with `resume`."""
        await self._files.restore()
        found: list[_Job] = []
        for id, text in (await self._shelf.heads()).items():
            try:
                head = msgspec.json.decode(text, type=_Head)
            except msgspec.DecodeError as error:  # of another release
                log.error("batch_unreadable", extra={"batch": id, "reason": str(error)})
                continue
            found.append(_Job(head.owner, head.batch, 0.0))
        for job in sorted(found, key=lambda job: job.batch.created_at):
            self._jobs[job.batch.id] = job
            if job.batch.status in _ENDED:
                self._files.finish(job.batch.input_file)
                self._journal.discard(job.batch.id)
                continue
            await self._recover(job)
            if not self._files.hold_again(job.owner, job.batch.input_file) and not job.answered_all():
                job.batch.faults.append(Fault("input_lost", "the input file is gone"))
        self.forget_old()

    async def resume(self) -> None:
        """Goes on with the batches that were not finished when the process ended."""
        for job in list(self._jobs.values()):
            if job.batch.status not in _ENDED and job.task is None and not self._closed:
                self._start(job)

    async def close(self) -> None:
        """Ends all work, and returns when none is left. On a shelf that lasts, it goes on at the next start."""
        self._closed = True
        tasks = [task for job in self._jobs.values() for task in (job.task, job.work) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- files ---

    async def add_file(self, caller: str, name: str, content: bytes, keep_s: float | None = None) -> StoredFile:
        """See `core.batches.Batches`, also of the methods below."""
        return await self._files.add(caller, name, content, "batch", keep_s)

    async def file(self, caller: str, id: str) -> StoredFile:
        return self._files.find(caller, id)

    async def files(self, caller: str) -> list[StoredFile]:
        return self._files.of(caller)

    async def content(self, caller: str, id: str) -> bytes:
        return await self._files.content(caller, id)

    async def remove_file(self, caller: str, id: str) -> None:
        if self._files.held(caller, id):
            raise AlreadyExists(f"a batch works on the file {id}; cancel it first")
        await self._files.remove(caller, id)

    # --- batches ---

    async def create(
        self, caller: str, endpoint: str, input_file: str, metadata: Mapping[str, str], keep_s: float | None = None
    ) -> Batch:
        if self._closed:
            raise NotReady("the server is stopping")
        self._make_room(caller)
        unfinished = [job for job in self._jobs.values() if job.batch.status not in _ENDED]
        if sum(job.owner == caller for job in unfinished) >= self._bounds.caller_unfinished:
            raise QuotaExceeded(
                f"you have {self._bounds.caller_unfinished} batches that are not finished, the most that one caller "
                "may have", retry_after_s=60,
            )  # fmt: skip
        if len(unfinished) >= self._bounds.all_unfinished:
            raise Overloaded(f"{len(unfinished)} batches are not finished; try again later", retry_after_s=60)
        self._files.hold(caller, input_file)
        now = int(self._clock())
        batch = Batch(f"batch_{uuid.uuid4().hex}", endpoint, input_file, now, int(now + self._window_s), dict(metadata))
        batch.output_keep_s = keep_s
        job = self._jobs[batch.id] = _Job(caller, batch, 0.0)
        try:
            await self._save(job)
        except BaseException:
            del self._jobs[batch.id]
            self._files.release(input_file)
            self._shelf.discard(batch.id)
            raise
        if not self._closed:
            self._start(job)
        return _copy(batch)

    async def batch(self, caller: str, id: str) -> Batch:
        return _copy(self._find(caller, id).batch)

    async def listed(self, caller: str) -> list[Batch]:
        return [_copy(job.batch) for job in reversed(self._jobs.values()) if job.owner == caller]

    async def cancel(self, caller: str, id: str) -> Batch:
        job = self._find(caller, id)
        if job.batch.status in _ENDED:
            raise AlreadyExists(f"the batch is {job.batch.status}; only one that works can be cancelled")
        if job.batch.status in ("validating", "in_progress"):
            self._reach(job, "cancelling")
            if job.work is not None:
                job.work.cancel()
            with contextlib.suppress(PenstockError):  # its end is written until that succeeds
                await self._save(job)
        return _copy(job.batch)

    def _find(self, caller: str, id: str) -> _Job:
        self.forget_old()
        job = self._jobs.get(id)
        if job is None and self._shelf.damaged(id):
            raise Internal(f"what was kept of {id} is damaged; the server's log says where")
        if job is None or job.owner != caller:
            raise NotFound(f"No such batch: {id[:128]}")
        return job

    def forget_old(self) -> None:
        """Ended batches and files that are too old go. Called now and then, and before each look."""
        now = self._clock()
        for id, job in list(self._jobs.items()):
            if job.batch.status in _ENDED and now - job.batch.created_at > KEEP_S + self._window_s:
                self._forget(id)
        self._files.forget_old()

    def _make_room(self, caller: str) -> None:
        """The oldest ended batches of a caller who has too many go."""
        self.forget_old()
        ended = [id for id, job in self._jobs.items() if job.owner == caller and job.batch.status in _ENDED]
        for id in ended[: max(0, len(ended) - self._bounds.caller_batches)]:
            self._forget(id)

    def _forget(self, id: str) -> None:
        del self._jobs[id]
        self._shelf.discard(id)

    # --- the work ---

    def _start(self, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        job.ends = loop.time() + max(0.0, job.batch.expires_at - self._clock())
        job.task = loop.create_task(self._run(job))

    async def _run(self, job: _Job) -> None:
        """From the reading of the file to the end. A process that ends leaves it as it is."""
        loop = asyncio.get_running_loop()
        failure: BaseException | None = None
        expired = False
        try:
            await self._read(job)
            if not job.batch.faults and job.batch.status != "cancelling":
                work = job.work = loop.create_task(self._work(job))
                try:
                    await asyncio.wait({work}, timeout=max(0.0, job.ends - loop.time()))
                    expired = not work.done() and bool(job.left or job.running)
                finally:
                    work.cancel()
                    await asyncio.wait({work})
                failure = None if work.cancelled() else work.exception()
        except Exception as error:  # outermost: its caller is told
            failure = error
        finally:
            if not self._closed:  # else it goes on at the next start
                self._files.release(job.batch.input_file)
        await self._end(job, failure, expired)
        job.work = job.task = None

    async def _recover(self, job: _Job) -> None:
        """Brings in the answers that the journal has."""
        batch = job.batch
        batch.answered = batch.refused = 0
        batch.usage = LineUsage()
        try:
            answered, damage = await self._journal.lines(batch.id)
        except PenstockError as error:
            answered, damage = [], error.message
        for text in answered:
            succeeded, usage, line = read_entry(text)
            job.names.add(name_of(line))
            self._count(job, line + b"\n", succeeded, usage)
        if damage:
            batch.faults.append(Fault("server_error", damage))

    async def _read(self, job: _Job) -> None:
        """Finds the lines that have no answer yet."""
        if job.batch.faults or job.answered_all():
            return
        try:
            content = await self._files.content(job.owner, job.batch.input_file)
        except PenstockError as error:
            job.batch.faults.append(Fault("server_error", error.message))
            return
        lines, faults = await asyncio.to_thread(read_lines, content, job.batch.endpoint)
        job.batch.faults += faults
        if faults:
            return
        job.batch.total = len(lines)
        job.left = [line for line in reversed(lines) if line.name not in job.names]
        if job.batch.status == "validating":
            self._reach(job, "in_progress")
            with contextlib.suppress(PenstockError):  # it is told all the same
                await self._save(job)

    async def _work(self, job: _Job) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(job.left))):
                group.create_task(self._take(job))

    def _count(self, job: _Job, text: bytes, succeeded: bool, usage: LineUsage) -> None:
        job.batch.usage += usage
        (job.good if succeeded else job.bad).append(text)
        job.batch.answered += succeeded
        job.batch.refused += not succeeded
        job.size_bytes += len(text)

    async def _take(self, job: _Job) -> None:
        while job.left and not job.batch.faults:
            line = job.left.pop()
            id = f"batch_req_{uuid.uuid4().hex}"
            job.running[id] = line
            answer = await self._ask(job, line)
            if answer is None:
                return
            text = written(id, line, answer)
            succeeded = answer.status == 200
            try:
                await self._journal.append(job.batch.id, entry(succeeded, answer.usage, text))
            except PenstockError as error:
                if not job.batch.faults:
                    job.batch.faults.append(Fault("no_room", f"an answer could not be kept: {error.message}"))
                return
            del job.running[id]
            self._count(job, text, succeeded, answer.usage)
            if job.size_bytes > self._bounds.caller_bytes // 2 and not job.batch.faults:
                job.batch.faults.append(Fault("output_too_large", "the answers take more room than one batch may have"))

    async def _ask(self, job: _Job, line: Line) -> LineAnswer | None:
        """None when the batch has failed meanwhile."""
        for pause_s in pauses():
            async with self._at_once:
                if job.batch.faults:
                    break
                answer = await self._answer(job.batch.endpoint, line.body, job.owner, job.ends)
            if answer.again_s is None:
                return answer
            await asyncio.sleep(min(LONGEST_S, max(pause_s, answer.again_s)))
        return None

    async def _end(self, job: _Job, failure: BaseException | None, expired: bool) -> None:
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
        batch.output_file = await self._persist(job, lambda: self._write(job, job.good, "output"))
        batch.error_file = await self._persist(job, lambda: self._write(job, job.bad, "error"))
        self._reach(job, status)
        job.left, job.running, job.good, job.bad = [], {}, [], []
        await self._persist(job, lambda: self._save(job))
        self._journal.discard(batch.id)

    async def _persist(self, job: _Job, write: Callable[[], Awaitable[T]]) -> T:
        """Tries until there is room: what was answered is in this process and the journal only."""
        for pause_s in pauses():
            try:
                return await write()
            except PenstockError as error:
                log.error("batch_not_kept", extra={"batch": job.batch.id, "reason": error.message})
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses do not end")

    async def _write(self, job: _Job, lines: list[bytes], kind: str) -> str | None:
        if not lines:
            return None
        name = f"{job.batch.id}_{kind}.jsonl"
        id = f"file-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return (await self._files.add(job.owner, name, b"".join(lines), "batch_output", job.batch.output_keep_s, id)).id

    async def _save(self, job: _Job) -> None:
        await self._shelf.put(job.batch.id, msgspec.json.encode(_Head(job.owner, job.batch)), b"")

    def _reach(self, job: _Job, status: str) -> None:
        job.batch.status = status
        job.batch.reached[status] = int(self._clock())


def _copy(batch: Batch) -> Batch:
    return replace(batch, faults=list(batch.faults), reached=dict(batch.reached))
