"""Who waits for the code that runs now: the traces of the batch's requests, and the time until which they wait.

A worker says so before it calls a model's code; the model's code, and clients that it uses, ask here. Threads that
user code starts begin without it (`contextvars.copy_context().run` takes it along), tasks of asyncio have it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import NamedTuple

from penstock.core.messages import NO_DEADLINE
from penstock.core.trace import RequestTrace, TraceContext, leading


class Caller(NamedTuple):
    """Those who wait. `trace` is what nested calls are part of; `chosen` when user code said so itself."""

    deadline: float
    traces: tuple[RequestTrace, ...]
    trace: TraceContext | None
    chosen: bool = False


_NOBODY = Caller(NO_DEADLINE, (), None)

_caller: ContextVar[Caller] = ContextVar("penstock_caller", default=_NOBODY)


def current_trace() -> TraceContext | None:
    """The trace context that calls made now should pass on, or None: of the batch's first recorded request, else of its
    first that brought one. `penstock.Client` passes it on by itself; for others there is `.headers()`."""
    return _caller.get().trace


def request_traces() -> tuple[RequestTrace, ...]:
    """The trace contexts of the batch's requests, each with its rows. Requests that brought none are left out."""
    return _caller.get().traces


def deadline() -> float:
    """The `time.monotonic()` from which on nobody waits for the batch that is computed now; infinity outside of one.
    `penstock.Client` lets no nested call last longer."""
    return _caller.get().deadline


@contextlib.contextmanager
def use_trace(trace: TraceContext | None) -> Iterator[None]:
    """Makes calls inside part of `trace`, such as that of one request of the batch; None makes them part of none."""
    token = _caller.set(_caller.get()._replace(trace=trace, chosen=True))
    try:
        yield
    finally:
        _caller.reset(token)


def enter(deadline: float, traces: tuple[RequestTrace, ...]) -> Token[Caller]:
    """Says who waits, until `leave`."""
    return _caller.set(Caller(deadline, traces, leading(traces) if traces else None))


def leave(token: Token[Caller]) -> None:
    """Ends what `enter` began, in the same thread and task."""
    _caller.reset(token)


def chosen() -> bool:
    """Whether user code has chosen the trace by `use_trace`."""
    return _caller.get().chosen
