"""The batcher of one servable: takes requests, makes batches when a worker is free, hands every caller one answer.

Theory of operation. `submit` puts a request into its lane and asks for a pump at the end of this loop iteration, so
that requests which arrived in the same iteration can join. A pump gives batches to executors as long as one has a free
slot. A process executor answers later through `_finish`, which first feeds the free worker and then tells the callers.
An inline executor answers at once. While anything waits or runs, a coarse sweep removes what nobody waits for any more
and fails what is late; a late request that is already in a worker is answered at its deadline, but its slot stays taken
until the worker is truly done, so that real concurrency never exceeds the workers.

A joined batch that fails by the model's fault is run again request by request, so that one bad row fails alone.
A request that user code held when its worker died fails, and is remembered by its content (see `quarantine`). One that
had not reached user code goes back to the head of the queue, and its caller never knows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from math import ceil

from penstock.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    PenstockError,
    ServableError,
    WorkerLost,
)
from penstock.core.messages import Request, Response, Timings
from penstock.core.servable import Tensors
from penstock.runtime.batching import collate, policy
from penstock.runtime.batching.admission import Admission
from penstock.runtime.batching.ledger import Occupancy, Recorder
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.batching.quarantine import FREE, REFUSED, Quarantine
from penstock.runtime.batching.queue import Lanes, Waiting
from penstock.runtime.batching.running import Running, traces_of
from penstock.runtime.workers import Batch, BatchResult, Executor
from penstock.runtime.workers.inline import InlineExecutor

# How often late and abandoned requests are looked for. They are to be gone within 50 ms; a sweep of a full queue of
# 2,048 takes about 0.1 ms here, so 20 ms costs half a percent at worst and nothing when idle.
SWEEP_S = 0.02

# How often a request may lose its worker before user code sees it. Ending a worker from outside so early so often is no
# accident: what unpacks the request may be what dies.
MOST_RETURNS = 3


class Batcher:
    """The queue of one loaded version and the executors behind it. All methods run on the loop's thread."""

    def __init__(
        self, model: str, version: str, limits: BatchLimits, *, joinable: bool, max_queue: int, recorder: Recorder,
        occupancy: Occupancy | None = None, shed: bool = True,
    ) -> None:  # fmt: skip
        self.model = model
        self.version = version
        self.limits = limits
        self.joinable = joinable  # axis 0 is the batch, and joining is allowed
        self.in_flight = 0  # accepted and not yet answered, the queued included
        self.on_idle: Callable[[], None] | None = None  # called whenever in_flight falls to 0
        self.on_starved: Callable[[], None] | None = None  # called when requests wait and there are no executors at all
        self._executors: list[Executor | InlineExecutor] = []
        self.recorder = recorder
        self._occupancy = occupancy or Occupancy()
        self._lanes = Lanes()
        self._admission = Admission(model, self._lanes, limits, max_queue, joinable=joinable, shed=shed)
        self._admission.free = lambda: sum(executor.free_slots for executor in self._executors)
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._running: set[Running] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._quarantine = Quarantine()
        self._closed: PenstockError | None = None
        self._expected = 0  # requests that wait elsewhere, and will come

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return self._lanes.size

    @property
    def slots(self) -> int:
        """Batches and streams that its workers take at once, all together."""
        return self._admission.slots

    def waited_s(self) -> float:
        """How long the request has waited that waits longest; 0 when none waits."""
        return self._lanes.waited_s(time.monotonic())

    def set_executors(self, executors: Sequence[Executor | InlineExecutor]) -> None:
        """Replaces the places where batches run; what they hold already is still answered."""
        self._executors = list(executors)
        self._admission.slots = sum(executor.signature.concurrency for executor in executors)
        self._schedule()

    def submit(
        self, request: Request, key: Hashable, rows: int, *, stream: bool = False, piece: bool = False
    ) -> asyncio.Future[Response]:
        """A future of the answer; for a stream, of its iterator. `key` is equal for requests that may be joined. A
        `piece` belongs to a larger request, whose owner counts it as a whole and keeps the version with `retain`.

        Raises:
            Overloaded: the queue is full, or kept short in an overload, or its wait would outlast the deadline.
            DeadlineExceeded: it is late already.
            NotReady: this version is going away.
        """
        now = time.monotonic()
        try:
            if self._closed is not None:
                raise self._closed
            self._admission.check(request, rows if self.joinable else 1, now, self._running, piece=piece)
            alone = bool(self._quarantine) and self._check_quarantine(request, now)
        except PenstockError as error:
            if not piece and error is not self._closed:
                self.recorder.refused(error.reason)
            raise
        future = self._enqueue(request, rows, key if not stream else "stream", now, alone, stream, piece)
        if not piece:
            self.in_flight += 1
        return future

    def resubmit(self, request: Request, rows: int) -> asyncio.Future[Response]:
        """As `submit`, at the head of the queue, for a stream whose worker died before user code saw it. Its owner goes
        on counting it. Raises: the error that `close` was given."""
        if self._closed is not None:
            raise self._closed
        return self._enqueue(request, rows, "stream", time.monotonic(), False, True, True, front=True)

    def _enqueue(
        self, request: Request, rows: int, key: Hashable, now: float, alone: bool, stream: bool, piece: bool,
        front: bool = False,
    ) -> asyncio.Future[Response]:  # fmt: skip
        future: asyncio.Future[Response] = self._loop.create_future()
        request.timings.submitted = now
        self._lanes.push(
            Waiting(
                request,
                future,
                rows if self.joinable else 1,
                key,
                now,
                alone,
                stream,
                piece,
            ),
            front=front,
        )
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)
        return future

    def retain(self, request: Request) -> None:
        """Lets in a request that will be submitted in pieces, and keeps the version from being closed as idle until
        `release`. Raises: what `submit` does."""
        try:
            if self._closed is not None:
                raise self._closed
            self._admission.check(request, self.limits.most_rows, time.monotonic(), self._running, piece=False)
        except PenstockError as error:
            if error is not self._closed:
                self.recorder.refused(error.reason)
            raise
        self.in_flight += 1

    def release(self) -> None:
        """Ends what `retain` began."""
        self._settle(1)

    @property
    def busy(self) -> bool:
        """Whether it holds a request, or one is still to come that was let in."""
        return bool(self.in_flight or self._expected)

    def expect(self) -> None:
        """A request that was let in will come, which waits elsewhere: until `expect_no_more`, nobody may close this
        version as idle. To be called once for each."""
        self._expected += 1

    def expect_no_more(self) -> None:
        """Ends what `expect` began."""
        self._expected -= 1
        if not self.busy and self.on_idle is not None:
            self.on_idle()

    def note_death(self, inputs: Tensors, error: WorkerLost) -> None:
        """Remembers that a worker died while it answered these inputs with a stream."""
        self._quarantine.add([inputs], error.died_at, alone=not error.doubtful)

    def note_answer(self, inputs: Tensors) -> None:
        """Forgets deaths with these inputs: they have been answered."""
        if self._quarantine:
            self._quarantine.clear(inputs)

    def note_stream(self, seconds: float) -> None:
        """Learns from a stream that ended by itself how long one holds its slot."""
        self._admission.learn(1, seconds)

    def wake(self) -> None:
        """To be called when an executor has a free slot again without having answered a batch."""
        self._schedule()

    def close(self, error: PenstockError) -> None:
        """Refuses everything from now on with `error`, and fails what still waits."""
        self._closed = error
        self.fail_waiting(error)
        for handle in (self._sweeper, self._delay):
            if handle is not None:
                handle.cancel()
        self._sweeper = self._delay = None

    def fail_waiting(self, error: PenstockError) -> None:
        """Fails what waits for an executor; what comes later waits as before."""
        for waiting in self._lanes.clear():
            self._fail(waiting, error)
        if self._lanes.dropped:
            self._settle_dropped()

    def _check_quarantine(self, request: Request, now: float) -> bool:
        verdict, deaths, refused_s = self._quarantine.judge(request.inputs, now)
        if verdict == REFUSED:
            raise ServableError(
                f"these inputs ended {deaths} workers of model '{self.model}' in a row and are refused for "
                f"{ceil(refused_s)} s"
            )
        return verdict != FREE

    # --- making batches ---

    def _schedule(self) -> None:
        if not self._pumping and self._lanes.size:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        lanes = self._lanes
        while lanes.size:
            free = [executor for executor in self._executors if executor.free_slots > 0]
            if not free:
                if not self._executors and self.on_starved is not None:
                    self.on_starved()
                break
            now = time.monotonic()
            entries, release, expired = lanes.take(now, len(free), self.limits)
            if expired:
                self._fail_late(expired)
            if not entries:
                if lanes.size:
                    self._wait_for_delay()
                break
            # Streams go where most slots are free: several share one worker, and it is the slower for each.
            chosen = max(free, key=_slots) if entries[0].stream and len(free) > 1 else free[0]
            self._dispatch(chosen, entries, release, now)
            if lanes.size and isinstance(chosen, InlineExecutor):
                self._schedule()  # let the loop read and write sockets between two batches
                break
        if lanes.dropped:
            self._settle_dropped()
        self._admission.note_length()
        if lanes.size or self._running:
            self._watch()

    def _dispatch(self, executor: Executor | InlineExecutor, entries: list[Waiting], release: str, now: float) -> None:
        traced = False
        for entry in entries:
            request = entry.request
            request.timings.dispatched = now
            if request.trace is not None:
                traced = True
        first = entries[0]
        traces = traces_of(entries) if traced else ()
        if first.stream:
            try:
                first.future.set_result(
                    executor.stream(first.request.inputs, first.request.parameters, first.request.deadline, traces)
                )
            except PenstockError as error:
                self._fail(first, error)
            return
        rows = sum([entry.rows for entry in entries])
        joined = self.joinable
        batch = Batch(
            [entry.request.inputs for entry in entries],
            rows,
            joined,
            policy.padding(rows, self.limits.sizes) if joined and self.limits.sizes else 0,
            first.request.parameters,
            max([entry.request.deadline for entry in entries]),
            traces=traces,
        )
        running = Running(entries, batch, release, now, executor, self._executors.index(executor), joined)
        if isinstance(executor, InlineExecutor):
            self._finish(running, executor.run_now(batch))
        else:
            occupancy = self._occupancy
            batch.borrow = policy.may_borrow(occupancy.busy, self._lanes.size)
            occupancy.busy += 1
            self._running.add(running)
            try:
                running.number = executor.run(batch, partial(self._finish_later, running))
            except PenstockError as error:
                self._finish_later(running, error)

    def _finish_later(self, running: Running, result: BatchResult | PenstockError) -> None:
        self._running.discard(running)
        self._occupancy.busy -= 1
        if self._lanes.size:
            self._pump()  # the worker is fed before the callers are told: it must not wait for their encoding
        self._finish(running, result)

    def _finish(self, running: Running, result: BatchResult | PenstockError) -> None:
        entries = running.entries
        if isinstance(result, PenstockError):
            self._finish_failed(running, result)
            return
        try:
            pieces: list[dict[str, object]] = (
                collate.split(result.outputs, [entry.rows for entry in entries])  # type: ignore[assignment]
                if running.joined and (len(entries) > 1 or running.batch.pad_rows)
                else [result.outputs]  # type: ignore[list-item]  # arrays are objects; dict is invariant
            )
        except ServableError as error:
            self._finish_failed(running, error)
            return
        now = time.monotonic()
        rows = running.batch.rows
        recorder = self.recorder
        self._admission.learn(rows, now - running.dispatched)
        recorder.record_batch(
            rows, running.batch.pad_rows, running.release, result.compute_input_s, result.compute_infer_s,
            result.compute_output_s, running.worker, running.dispatched - entries[0].since,
        )  # fmt: skip
        model, version, traces = self.model, self.version, running.batch.traces
        suspects = bool(self._quarantine)
        answered: list[Timings] = []
        answered_rows = 0
        for entry, outputs in zip(entries, pieces, strict=True):
            future = entry.future
            if future.done():
                if future.cancelled():
                    self._note_left(entry)
                continue
            request = entry.request
            timings = request.timings
            if request.deadline < now:
                self._fail_computing(entry, now)
                continue
            timings.finished = now
            timings.compute_input_s = result.compute_input_s
            timings.compute_infer_s = result.compute_infer_s
            timings.compute_output_s = result.compute_output_s
            timings.batch_rows = rows
            timings.release = running.release
            timings.steps = result.steps
            if suspects:
                self._quarantine.clear(request.inputs)
            future.set_result(Response(model, version, outputs, request.id, result.parameters or {}, timings, traces))  # type: ignore[arg-type]
            if not entry.piece:
                answered.append(timings)
                answered_rows += entry.rows
        if answered:
            recorder.record_answers(answered, answered_rows)
        self._settle(len([entry for entry in entries if not entry.piece]))

    def _finish_failed(self, running: Running, error: PenstockError) -> None:
        entries = running.entries
        if isinstance(error, WorkerLost) and (error.begun or entries[0].returns >= MOST_RETURNS):
            held = [entry.request.inputs for entry in entries]
            self._quarantine.add(held, error.died_at, alone=not error.doubtful)
        elif isinstance(error, DeadlineExceeded):  # a coroutine was cancelled at its deadline
            self._admission.learn_at_least(running.rows, time.monotonic() - running.dispatched)
        elif self._closed is None and isinstance(error, WorkerLost):
            for entry in entries:
                entry.returns += 1
            self._put_back(entries)
            return
        elif self._closed is None and len(entries) > 1 and isinstance(error, ServableError | InvalidInput):
            for entry in entries:
                entry.alone = True
            self._put_back(entries)
            return
        for entry in entries:
            self._fail(entry, error)

    def _put_back(self, entries: list[Waiting]) -> None:
        """Has them run again, before all others."""
        for entry in reversed(entries):
            if entry.future.done():
                self._leave(entry)
            else:
                self._lanes.push(entry, front=True)
        self._schedule()

    # --- endings ---

    def _fail(self, entry: Waiting, error: PenstockError) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)
            if not entry.piece:
                self.recorder.record_failure(error.reason, time.monotonic() - entry.request.timings.received)
            self._settle(not entry.piece)
        else:
            self._leave(entry)

    def _fail_late(self, expired: list[Waiting]) -> None:
        for entry in expired:
            self._fail(entry, DeadlineExceeded("the deadline passed while the request waited for a worker"))

    def _fail_computing(self, entry: Waiting, now: float) -> None:
        """Answers a request whose batch still runs, or came too late; it stays accounted for until the batch ends."""
        entry.future.set_exception(DeadlineExceeded("the deadline passed while the model was computing"))
        if not entry.piece:
            self.recorder.record_failure(DeadlineExceeded.reason, now - entry.request.timings.received)

    def _leave(self, entry: Waiting) -> None:
        """Accounts for a request that somebody else ended: its caller, who left, or its deadline."""
        if entry.future.cancelled():
            self._note_left(entry)
        self._settle(not entry.piece)

    def _note_left(self, entry: Waiting) -> None:
        if not entry.piece:
            self.recorder.record_failure(Cancelled.reason, time.monotonic() - entry.request.timings.received)

    def _settle(self, count: int) -> None:
        self.in_flight -= count
        if count and not self.busy and self.on_idle is not None:
            self.on_idle()

    def _settle_dropped(self) -> None:
        """Accounts for those whose caller left while they waited: the lanes drop them silently."""
        dropped, self._lanes.dropped = self._lanes.dropped, []
        for entry in dropped:
            self._leave(entry)

    # --- time ---

    def _wait_for_delay(self) -> None:
        due = self._lanes.next_release(self.limits)
        if due is not None and self._delay is None:
            self._delay = self._loop.call_later(max(0.0, due - time.monotonic()), self._delay_over)

    def _delay_over(self) -> None:
        self._delay = None
        self._pump()

    def _watch(self) -> None:
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = time.monotonic()
        self._fail_late(self._lanes.sweep(now))
        for running in self._running:
            awaited = False
            for entry in running.entries:
                if not entry.future.done():
                    if entry.request.deadline <= now:
                        self._fail_computing(entry, now)
                    else:
                        awaited = True
            if not awaited and not running.abandoned:
                running.abandoned = True
                running.executor.abandon(running.number)
        if self._lanes.dropped:
            self._settle_dropped()
        for entry in self._admission.look(now, self._running):
            self._fail(entry, self._admission.too_much())
        if self._lanes.size or self._running:
            self._watch()


def _slots(executor: Executor | InlineExecutor) -> int:
    return executor.free_slots
