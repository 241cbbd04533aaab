"""What a call takes along from the code that makes it: its trace, and how long its own caller waits."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from penstock.core import caller


def trace_headers() -> Mapping[str, str]:
    """The headers that make a call part of the current trace; empty outside of one.

    What `penstock.use_trace` says comes first; then the current span of OpenTelemetry, if the program has imported it;
    then the trace of the batch that this code computes.
    """
    if "opentelemetry.trace" in sys.modules and not caller.chosen():
        headers = _of_opentelemetry()
        if headers:
            return headers
    trace = caller.current_trace()
    return {} if trace is None else trace.headers()


def _of_opentelemetry() -> dict[str, str]:
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    if headers:
        W3CBaggagePropagator().inject(headers)
    return headers
