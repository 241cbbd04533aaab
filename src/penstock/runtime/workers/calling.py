"""What user code can find out about its callers while it runs: see `core.caller`; and OpenTelemetry's own context.

User code that has imported OpenTelemetry finds the batch's trace as the current context, so that its spans are children
without a word from it. Nothing is imported for user code that does not use it.
"""

from __future__ import annotations

import sys
from contextvars import Token
from typing import Any

from penstock.core import caller
from penstock.core.trace import TraceContext
from penstock.runtime.workers.frame import Run


class Calling:
    """Says in this thread or task who waits for `run`, until `done`."""

    __slots__ = ("_caller", "_foreign")

    def __init__(self, run: Run) -> None:
        self._caller = caller.enter(run.deadline, run.traces)
        self._foreign: Token[Any] | None = None
        if run.traces and "opentelemetry.trace" in sys.modules and (trace := caller.current_trace()) is not None:
            self._foreign = _attach(trace)

    def done(self) -> None:
        """Says that nobody waits any more."""
        if self._foreign is not None:
            from opentelemetry import context

            context.detach(self._foreign)
        caller.leave(self._caller)


def _attach(trace: TraceContext) -> Token[Any]:
    from opentelemetry import context
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers = trace.headers()
    here = TraceContextTextMapPropagator().extract(headers)
    return context.attach(W3CBaggagePropagator().extract(headers, here))
