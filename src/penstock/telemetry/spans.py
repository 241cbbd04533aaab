"""Spans of requests: which requests have them, and a bounded queue to the thread that sends them away.

Theory of operation. A request whose caller records its trace is recorded too; of those that bring no trace, a share
(`sampling`) begins one. Its ids are drawn when it begins, so that the model's own spans can be children of one that is
not written yet. When it ends, one record is put into a queue, and a thread of its own makes OpenTelemetry spans of it.
The thread works at most a tenth of the time, because it shares the interpreter with the requests: what it cannot keep
up with, or cannot get rid of, is dropped and counted. Nothing here waits for the receiver.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.core.messages import Timings
from penstock.core.trace import SAMPLED, RequestTrace, TraceContext, leading

log = logging.getLogger("penstock.spans")

# Requests that wait for the thread: a second of a busy server at 10 % sampling; about 2 MB at most.
QUEUE = 2048
# Requests in one export: some 250 spans, which keep the interpreter for about 10 ms in small turns.
_AT_ONCE = 64
_LOOK_S = 0.25
_DUTY = 0.1  # of the thread's time it may compute
_COMPLAIN_S = 60.0
_LINKS = 32  # other requests of the batch that one span names
_RANDOM = 2  # the trace id is random: Trace Context Level 2


class Span:
    """One recorded request under way. `inner` is what its model sees as its caller."""

    __slots__ = ("inner", "parent_id", "span_id")

    def __init__(self, inner: TraceContext, span_id: str, parent_id: str) -> None:
        self.inner = inner
        self.span_id = span_id
        self.parent_id = parent_id  # "" when the trace begins here


@dataclass(slots=True)
class Ended:
    """One recorded request. Times are monotonic seconds."""

    span: Span
    name: str
    attributes: Mapping[str, str | int | float | bool]
    timings: Timings
    ended: float
    error: str = ""  # the code of a failure that was not the caller's
    links: Sequence[TraceContext] = ()  # requests of the same batch


class Exporter(Protocol):
    """Where ended requests go. Called on the thread only, `shutdown` from anywhere."""

    def export(self, ended: Sequence[Ended]) -> bool:
        """Whether they have arrived. May take long; raises nothing."""
        ...

    def shutdown(self) -> None:
        """Ends a wait in `export` early."""
        ...


@dataclass(slots=True)
class SpanCounts:
    """Recorded requests, by what became of them."""

    exported: int = 0
    dropped: int = 0  # the queue was full
    failed: int = 0  # the receiver did not take them


@dataclass(slots=True)
class Spans:
    """The recorded requests of one process. `close` ends the thread that the first of them starts."""

    sampling: float  # of requests that bring no trace, 0 to 1
    exporter: Exporter
    counts: SpanCounts = field(default_factory=SpanCounts)
    _queue: deque[Ended] = field(default_factory=deque)
    _thread: threading.Thread | None = None
    _closing: threading.Event = field(default_factory=threading.Event)
    _complained: float = float("-inf")

    def begin(self, trace: TraceContext | None) -> Span | None:
        """The span of a request that came with `trace`; None when it is not recorded."""
        if trace is None:
            if random.random() >= self.sampling:
                return None
            inner = TraceContext(f"{random.getrandbits(128):032x}", _new_id(), SAMPLED | _RANDOM)
            return Span(inner, _new_id(), "")
        if not trace.flags & SAMPLED:
            return None
        return Span(trace._replace(span_id=_new_id()), _new_id(), trace.span_id)

    def end(self, ended: Ended) -> None:
        """Takes a request whose answer is out."""
        if len(self._queue) >= QUEUE or self._closing.is_set():
            self.counts.dropped += 1
            return
        self._queue.append(ended)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Sends what waits, for at most `timeout_s`. Blocks: not for the loop's thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self.exporter.shutdown()

    def _run(self) -> None:
        while not self._closing.is_set():
            computed = time.thread_time()
            self._export()
            computed = time.thread_time() - computed
            rest_s = computed / _DUTY - computed
            self._closing.wait(rest_s if self._queue else max(rest_s, _LOOK_S))
        while self._queue:
            self._export()

    def _export(self) -> None:
        ended: list[Ended] = []
        with contextlib.suppress(IndexError):
            while len(ended) < _AT_ONCE:
                ended.append(self._queue.popleft())
        if not ended:
            return
        if self.exporter.export(ended):
            self.counts.exported += len(ended)
            return
        self.counts.failed += len(ended)
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_S:
            self._complained = now
            log.warning("spans_not_exported", extra={"failed": self.counts.failed, "dropped": self.counts.dropped})


def links(span: Span, traces: Sequence[RequestTrace]) -> list[TraceContext]:
    """The recorded requests of one batch that a request's span should name: the one that leads it names the others,
    each other names the leader."""
    leader = leading(traces)
    if leader is None or len(traces) < 2:
        return []
    if leader.span_id != span.inner.span_id:
        return [leader] if leader.sampled else []
    return [one.trace for one in traces if one.trace.sampled and one.trace is not leader][:_LINKS]


def _new_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"
