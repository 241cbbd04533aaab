"""How the gate of a queue comes to hold it short, and how it stops."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import pytest

from penstock.core.errors import NotReady, Overloaded
from penstock.core.messages import Request
from penstock.runtime.batching.admission import Admission
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.batching.queue import Lanes, Waiting
from penstock.telemetry.metrics import ModelMetrics

ONE = BatchLimits(1, join=False)
BATCH_S = 0.002


@dataclass(frozen=True)
class Run:
    rows: int
    dispatched: float


class Queue:
    """The queue of one worker, whose batches take 2 ms, and its gate; on a clock of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lanes = Lanes()
        self.gate = Admission("m", self.lanes, ONE, 2048, joinable=False, shed=True)
        self.gate.slots = 1
        self.now = 100.0
        self.cut: list[Waiting] = []
        self._loop = loop
        for _ in range(10):
            self.gate.learn(1, BATCH_S)

    def come(self, count: int, running: tuple[Run, ...] = (), *, piece: bool = False) -> int:
        """Lets so many requests in at once; how many were refused."""
        refused = 0
        for _ in range(count):
            request = Request("m", {}, deadline=self.now + 60.0)
            try:
                self.gate.check(request, 1, self.now, running, piece=piece)
            except Overloaded:
                refused += 1
            else:
                self.lanes.push(Waiting(request, self._loop.create_future(), 1, "key", self.now, piece=piece))
        return refused

    def take(self, count: int) -> None:
        for _ in range(count):
            self.lanes.take(self.now, 1, ONE)
            self.gate.note_length()

    def pass_time(self, seconds: float, running: tuple[Run, ...] = ()) -> None:
        """Lets time pass, and the gate look as often as the batcher does."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.02)
            self.cut += self.gate.look(self.now, running)

    def overload(self) -> None:
        """Twice as many requests as it can answer, until some are refused."""
        while not self.come(20):
            self.take(10)
            self.pass_time(0.02)


@pytest.fixture
def queue() -> Queue:
    loop = asyncio.new_event_loop()
    loop.close()  # futures need one, nothing runs on it
    return Queue(loop)


def test_burst_on_an_idle_server_is_taken_though_there_was_an_overload_once(queue: Queue) -> None:
    """Nobody looks at an empty queue, so the window in which the overload would have ended is never seen to end."""
    queue.overload()
    queue.take(queue.lanes.size)
    assert queue.lanes.size == 0
    queue.now += 60.0
    assert queue.come(30) == 0


def test_pause_of_a_moment_does_not_end_an_overload(queue: Queue) -> None:
    queue.overload()
    queue.take(queue.lanes.size)
    queue.now += 0.001
    assert queue.come(40) > 0


def test_queue_behind_one_slow_batch_is_no_overload(queue: Queue) -> None:
    """A tenth of what the worker can answer comes, and one batch takes a thousand times as long as the others."""
    for _ in range(50):
        queue.come(1)
        queue.take(1)
        queue.pass_time(0.02)
    slow = (Run(1, queue.now),)
    refused = 0
    for _ in range(100):
        refused += queue.come(1, slow)
        queue.pass_time(0.02, slow)
    queue.gate.learn(1, 2.0)
    for _ in range(50):
        refused += queue.come(1)
        queue.take(10)
        queue.pass_time(0.02)
    assert refused == 0
    assert queue.cut == []


def test_overload_of_batches_that_all_end_is_found(queue: Queue) -> None:
    """Each batch began in the window in which it is seen to run."""
    refused = 0
    for _ in range(100):
        running = (Run(1, queue.now - 0.001),)
        refused += queue.come(20, running)
        queue.take(10)
        queue.pass_time(0.02, running)
    assert refused > 0


def test_pieces_of_a_request_that_was_let_in_are_not_cut(queue: Queue) -> None:
    """One missing piece would fail the whole request."""
    queue.come(500, piece=True)
    queue.come(5)
    cut = queue.lanes.cut(12)
    assert len(cut) == 5
    assert queue.lanes.size == queue.lanes.rows == 500


async def test_closed_version_takes_no_stream_back() -> None:
    batcher = Batcher("m", "1", ONE, joinable=False, max_queue=8, recorder=ModelMetrics("m", "1"))
    batcher.close(NotReady("it is unloaded"))
    with pytest.raises(NotReady, match="unloaded"):
        batcher.resubmit(Request("m", {"x": np.zeros(1)}, deadline=time.monotonic() + 3), 1)


def test_nobody_is_refused_for_whom_a_slot_is_free_however_long_most_take() -> None:
    """As in a graph one of whose steps hangs for some: what hangs must not close it to the others."""
    loop = asyncio.new_event_loop()
    queue = Queue(loop)
    queue.gate.slots = 3
    for _ in range(64):
        queue.gate.learn(1, 10.0)

    def come(free: int) -> bool:
        queue.gate.free = lambda: free
        request = Request("m", {}, deadline=queue.now + 2.0)
        try:
            queue.gate.check(request, 1, queue.now, (), piece=False)
        except Overloaded as error:
            assert "would need about" in error.message
            return False
        queue.lanes.push(Waiting(request, loop.create_future(), 1, "key", queue.now))
        return True

    assert [come(3) for _ in range(5)] == [True, True, True, False, False]
    assert not come(0)
    loop.close()
