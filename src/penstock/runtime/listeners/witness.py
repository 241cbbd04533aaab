"""What is noted of each request beside its answer: its trace context, its spans and its line in the access log.

A listener where neither spans nor the access log are on has no witness, and pays one look for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from penstock.core import trace
from penstock.core.messages import Request, Response, Timings
from penstock.protocols import HttpRequest
from penstock.telemetry.logs import ACCESS
from penstock.telemetry.spans import Ended, Span, Spans, links

access = logging.getLogger(ACCESS)

# gRPC codes that mean a fault of the server. Source: OpenTelemetry's semantic conventions for gRPC spans.
_GRPC_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_ID_CHARS = 128
_REQUEST_ID = b"x-request-id"
_TRACE_BYTES = (trace.TRACEPARENT.encode(), trace.TRACESTATE.encode(), trace.BAGGAGE.encode())


def take_http_trace(request: Request, headers: Mapping[bytes, bytes]) -> None:
    """Gives the request the trace context that came with it."""
    request.trace = trace.read(*[headers.get(name, b"").decode("latin-1") for name in _TRACE_BYTES])


def take_grpc_trace(request: Request, metadata: Mapping[str, str]) -> None:
    """Gives the request the trace context that came with it."""
    request.trace = trace.read(
        *[metadata.get(name, "") for name in (trace.TRACEPARENT, trace.TRACESTATE, trace.BAGGAGE)]
    )


class Sight:
    """One inference under way, as a witness sees it. `response` is set when there is one."""

    __slots__ = ("request", "response", "span", "trace_id")

    def __init__(self, request: Request, span: Span | None) -> None:
        self.request = request
        self.response: Response | None = None
        self.span = span
        self.trace_id = request.trace.trace_id if request.trace is not None else ""


class Witness:
    """Sees the requests of one listener. At least one of `spans` and `access_log` is on."""

    def __init__(self, spans: Spans | None, access_log: bool) -> None:
        self._spans = spans
        self._access_log = access_log

    def see(self, request: Request) -> Sight | None:
        """Decides whether the request is recorded, before it is submitted: then its model is part of the recording.
        None when there is nothing to note of it."""
        span = None
        if self._spans is not None:
            span = self._spans.begin(request.trace)
            if span is not None:
                request.trace = span.inner
        return Sight(request, span) if span is not None or self._access_log else None

    def see_refused(self, model: str, trace_of: Callable[[Request], None] | None, received: float) -> Sight | None:
        """The sight of an inference that could not be decoded. `trace_of` gives it what its caller sent."""
        request = Request(model, {}, timings=Timings(received=received))
        if trace_of is not None:
            trace_of(request)
        return self.see(request)

    def http(self, http: HttpRequest, route: str, status: int, sight: Sight | None) -> None:
        """Takes note of an answered HTTP request. `route` is its pattern; 499 is a client that left."""
        ended = time.monotonic()
        if sight is not None and sight.span is not None:
            attributes: dict[str, str | int] = {
                "http.request.method": http.method,
                "http.route": route,
                "http.response.status_code": status,
            }
            error = str(status) if status >= 500 else ""
            self._record(sight, sight.span, f"{http.method} {route}", attributes, ended, error)
        if self._access_log:
            fields: dict[str, object] = {"method": http.method, "path": http.path, "code": status}
            if _REQUEST_ID in http.headers:
                fields["request_id"] = http.header(_REQUEST_ID)
            self._log(fields, http.received, ended, sight)

    def grpc(self, method: str, received: float, code: str, sight: Sight | None) -> None:
        """Takes note of an answered gRPC call, or of one message of a stream. `method` is service/method."""
        ended = time.monotonic()
        if sight is not None and sight.span is not None:
            attributes: dict[str, str | int] = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "rpc.response.status_code": code,
            }
            self._record(sight, sight.span, method, attributes, ended, code if code in _GRPC_FAULTS else "")
        if self._access_log:
            self._log({"method": "gRPC", "path": method, "code": code}, received, ended, sight)

    def _record(
        self, sight: Sight, span: Span, name: str, attributes: dict[str, str | int], ended: float, error: str
    ) -> None:
        request, response = sight.request, sight.response
        attributes["penstock.model"] = request.model
        if request.id:
            attributes["penstock.request_id"] = request.id[:_ID_CHARS]
        timings = request.timings
        joined: list[trace.TraceContext] = []
        if response is not None:
            timings = response.timings
            attributes["penstock.version"] = response.version
            attributes["penstock.batch_rows"] = timings.batch_rows
            attributes["penstock.release"] = timings.release
            joined = links(span, response.traces)
        if error:
            attributes["error.type"] = error
        assert self._spans is not None
        self._spans.end(Ended(span, name, attributes, timings, ended, error, joined))

    def _log(self, fields: dict[str, object], received: float, ended: float, sight: Sight | None) -> None:
        fields["total_ms"] = round((ended - received) * 1e3, 3) if received else 0.0
        if sight is not None:
            request, response = sight.request, sight.response
            fields["model"] = request.model
            fields["version"] = request.version
            if request.id:
                fields["request_id"] = request.id
            if sight.trace_id or sight.span is not None:
                fields["trace_id"] = sight.trace_id or sight.span.inner.trace_id  # type: ignore[union-attr]  # see above
            if response is not None:
                timings = response.timings
                fields["version"] = response.version
                fields["queue_ms"] = round(max(0.0, timings.dispatched - timings.submitted) * 1e3, 3)
                fields["compute_ms"] = round(timings.compute_infer_s * 1e3, 3)
                fields["batch_rows"] = timings.batch_rows
        access.info("request", extra=fields)
