"""Whether a request may wait before one servable: keeps what `overload` judges by, and raises its judgement."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from penstock.core.errors import DeadlineExceeded, Overloaded
from penstock.core.messages import Request
from penstock.runtime.batching import overload
from penstock.runtime.batching.overload import Ahead, Cost, Standing
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.batching.queue import Lanes, Waiting

# Of the batches that run, so many are looked at one by one to know when a slot will be free; of more (an asyncio model
# may have a thousand) it is enough to know that they are half done.
_LOOKED_AT = 16

# Batches that ran while nobody asked; what older ones say has faded (see `Cost`).
_REMEMBERED = 64

# Who would be answered in the last moment is late as often as not: times vary.
_MARGIN = 1.15


class Runs(Protocol):
    """A batch that runs since `dispatched` (monotonic)."""

    rows: int
    dispatched: float


class Admission:
    """The gate of one queue."""

    def __init__(self, model: str, lanes: Lanes, limits: BatchLimits, max_queue: int, *, joinable: bool, shed: bool):
        self.slots = 0  # batches that run at once at most
        self.free: Callable[[], int] = lambda: 0  # of these, now
        self._model = model
        self._lanes = lanes
        self._limits = limits
        self._max_queue = max_queue
        self._joined = joinable and limits.join
        self._shed = shed
        self._ran: deque[tuple[int, float]] = deque(
            maxlen=_REMEMBERED
        )  # rows and seconds that `_cost` does not know yet
        self._cost = Cost()
        self._longest_s = 0.0  # of a batch, as far as is known
        self._standing = Standing()
        self._low = 0  # the fewest rows that waited in this window
        self._refused = 0  # because the queue is held short, in this window
        self._window_began = self._window_ends = 0.0

    def check(self, request: Request, rows: int, now: float, running: Collection[Runs], *, piece: bool) -> None:
        """Nothing, when a request of `rows` may wait. An empty queue takes everybody, also those whose deadline seems
        too close: else nothing would run any more from which to learn that the model has become faster. So does one
        with a free slot for each: nobody waits for them, and some answers may take a small part of the mean. A `piece`
        of a request whose first piece was taken is not turned away to keep the queue short.

        Raises:
            DeadlineExceeded: it is late already.
            Overloaded: the queue is full or held short, or its wait would outlast the deadline.
        """
        deadline = request.deadline
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request reached the queue")
        lanes = self._lanes
        if lanes.size == 0:
            if self._standing.held and now >= self._window_ends:
                self._standing, self._refused = Standing(), 0  # nobody looks at an empty queue, so it is over unseen
            return
        if self._ran:
            self._learn()
        before = lanes.rows_before(request.priority)
        if self._standing.held and not piece and before >= overload.kept_rows(self.slots, self._batch_rows):
            self._refused += 1
            raise self.too_much()
        if lanes.size < self._max_queue and deadline - now > (lanes.size + len(running) + 1) * self._longest_s:
            return  # even if they all ran one after the other
        ahead = self._ahead(before, now, running)
        wait_s, answer_s = overload.answer_s(self._cost, ahead, rows)
        if lanes.size >= self._max_queue:
            raise Overloaded(
                f"model '{self._model}' has {lanes.size} requests waiting, {self._max_queue} are allowed",
                retry_after_s=overload.retry_after_s(wait_s),
            )
        if now + answer_s * _MARGIN > deadline and lanes.size >= self.free():
            raise Overloaded(
                f"model '{self._model}' would need about {answer_s:.2f} s to answer this request, "
                f"its deadline is in {deadline - now:.2f} s",
                retry_after_s=overload.retry_after_s(wait_s),
            )

    def learn(self, rows: int, seconds: float) -> None:
        """Takes in how long a batch of so many rows held its slot. What it means is worked out when somebody waits:
        that takes as long as all else that is done for a batch here, and on an idle server nobody asks."""
        self._ran.append((rows, seconds))

    def learn_at_least(self, rows: int, seconds: float) -> None:
        """Takes in that a batch had not ended after so long."""
        self._learn()
        if seconds > self._cost.of(rows):
            self.learn(rows, seconds)

    def _learn(self) -> None:
        cost = self._cost
        for rows, seconds in self._ran:
            cost = cost.learn(rows, seconds)
        self._ran.clear()
        self._cost = cost
        self._longest_s = max(cost.of(self._batch_rows), cost.of(1))

    def too_much(self) -> Overloaded:
        """The error of those who are refused to keep the queue short."""
        return Overloaded(
            f"model '{self._model}' gets more requests than it can answer: {self._lanes.size} wait", retry_after_s=1
        )

    def note_length(self) -> None:
        """To be called when batches have been taken from the queue: it is at its shortest."""
        if self._lanes.rows < self._low:
            self._low = self._lanes.rows

    def look(self, now: float, running: Collection[Runs]) -> list[Waiting]:
        """To be called a few times in each window while something waits. Those who are to be refused although they
        were let in, and are no longer in the queue. A window in which every slot was at one and the same batch tells
        nothing and goes on: of course the queue grew."""
        if now < self._window_ends or (self.slots and self._all_busy_since(self._window_began, running)):
            return []
        self._learn()
        was_held = self._standing.held
        if not self.slots or not self._cost.weight:
            self._standing = Standing()  # a worker is on its way, or nobody knows yet what a long time is for it
        elif self._shed:
            kept = overload.kept_rows(self.slots, self._batch_rows)
            self._standing = self._standing.after(self._low, kept, self._refused)
        self._low, self._refused = self._lanes.rows, 0
        self._window_began = now
        self._window_ends = now + overload.window_s(self._cost.of(self._batch_rows))
        if was_held or not self._standing.held:
            return []
        mean_rows = self._lanes.rows / max(1, self._lanes.size)
        return self._lanes.cut(overload.backlog_rows(self._cost, self.slots, self._batch_rows, mean_rows))

    @property
    def _batch_rows(self) -> int:
        return self._limits.most_rows if self._joined else 1

    def _all_busy_since(self, moment: float, running: Collection[Runs]) -> bool:
        return len(running) >= self.slots and all(batch.dispatched < moment for batch in running)

    def _ahead(self, before: int, now: float, running: Collection[Runs]) -> Ahead:
        lanes, cost = self._lanes, self._cost
        if len(running) <= _LOOKED_AT:
            running_s = sum(max(0.0, batch.dispatched + cost.of(batch.rows) - now) for batch in running)
        else:
            running_s = 0.5 * len(running) * cost.of(1)
        requests = lanes.size if before == lanes.rows else -(-lanes.size * before // lanes.rows)
        return Ahead(before, requests, self.slots, running_s, self._limits.most_rows, self._joined)
