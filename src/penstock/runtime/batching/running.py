"""A batch that an executor holds, as its batcher remembers it."""

from __future__ import annotations

from penstock.core.trace import RequestTrace
from penstock.runtime.batching.queue import Waiting
from penstock.runtime.workers import Batch, Executor
from penstock.runtime.workers.inline import InlineExecutor


class Running:
    """A batch that a process executor holds."""

    __slots__ = (
        "abandoned", "batch", "dispatched", "entries", "executor", "joined", "number", "release", "rows", "worker",
    )  # fmt: skip

    def __init__(
        self, entries: list[Waiting], batch: Batch, release: str, dispatched: float,
        executor: Executor | InlineExecutor, worker: int, joined: bool,
    ) -> None:  # fmt: skip
        self.entries = entries
        self.batch = batch
        self.rows = batch.rows
        self.executor = executor
        self.number = 0  # the executor's
        self.abandoned = False  # the executor has been told that nobody waits any more
        self.release = release
        self.dispatched = dispatched
        self.worker = worker
        self.joined = joined


def traces_of(entries: list[Waiting]) -> tuple[RequestTrace, ...]:
    """The traces of a batch's requests, each with its rows of the batch."""
    traces: list[RequestTrace] = []
    start = 0
    for entry in entries:
        stop = start + entry.rows
        if entry.request.trace is not None:
            traces.append(RequestTrace(start, stop, entry.request.trace))
        start = stop
    return tuple(traces)
