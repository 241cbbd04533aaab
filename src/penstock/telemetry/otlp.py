"""Recorded requests as OpenTelemetry spans, sent over OTLP/HTTP. Imported only when a receiver is named.

Each request is a server span with three children: `queue` (waiting for a worker), `batch` (joined with others and
handed over) and `compute` (inside the model). The model's own spans are children of `compute`. In a joined batch, they
are children of the `compute` of its first recorded request, which is linked with those of the others.

The messages are filled in directly: OpenTelemetry's own span objects and encoder take five times as long (55 µs instead
of 11 µs a request), and this is time that the interpreter does not serve. Source: https://opentelemetry.io/docs/specs/otlp/
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from penstock.core.errors import InvalidInput
from penstock.core.trace import TraceContext
from penstock.telemetry.spans import Ended

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
    from opentelemetry.sdk import resources
except ImportError as error:
    raise InvalidInput(f"trace_endpoint needs OpenTelemetry: pip install 'penstock[otel]' ({error})") from None

log = logging.getLogger("penstock.spans")

# For a receiver's answer; meanwhile the queue fills up and is dropped.
_TIMEOUT_S = 10.0

Attribute = str | int | float | bool


class OtlpExporter:
    """Sends to one endpoint, over one connection. More about the resource is taken from OpenTelemetry's own variables
    (OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME)."""

    def __init__(self, endpoint: str, version: str) -> None:
        parts = urlsplit(endpoint)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.netloc, timeout=_TIMEOUT_S)
        self._path = (parts.path or "/v1/traces") + (f"?{parts.query}" if parts.query else "")
        found = resources.Resource.create({"service.name": "penstock", "service.version": version}).attributes
        plain = {key: value for key, value in found.items() if isinstance(value, Attribute)}
        self._resource = Resource(attributes=_attributes(plain))
        self._scope = InstrumentationScope(name="penstock", version=version)
        self._closed = False

    def export(self, ended: Sequence[Ended]) -> bool:
        """Whether the receiver has taken them."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        spans = [span for one in ended for span in _spans(one, offset_ns)]
        scoped = ScopeSpans(scope=self._scope, spans=spans)
        message = ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scoped])]
        )
        body: bytes = message.SerializeToString()
        fresh = self._connection.sock is None
        try:
            try:
                return self._post(body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if fresh:
                    raise
                self._connection.close()  # it was kept for too long
                return self._post(body)
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return False
        except Exception:  # outermost: the thread goes on
            log.exception("export_failed")
            self._connection.close()
            return False

    def shutdown(self) -> None:
        """Ends a wait for the receiver early."""
        self._closed = True
        sock: socket.socket | None = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _post(self, body: bytes) -> bool:
        if self._closed:
            return False
        self._connection.request("POST", self._path, body, {"Content-Type": "application/x-protobuf"})
        answer = self._connection.getresponse()
        answer.read()
        return 200 <= answer.status < 300


def _spans(one: Ended, offset_ns: int) -> Iterator[Span]:
    timings, span, inner = one.timings, one.span, one.span.inner
    trace_id, own_id, inner_id = map(bytes.fromhex, (inner.trace_id, span.span_id, inner.span_id))

    def at(seconds: float) -> int:
        return int(seconds * 1e9) + offset_ns

    yield Span(
        trace_id=trace_id,
        span_id=own_id,
        parent_span_id=bytes.fromhex(span.parent_id),
        trace_state=inner.state,
        flags=inner.flags,
        name=one.name,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=at(timings.received),
        end_time_unix_nano=at(one.ended),
        attributes=_attributes(one.attributes),
        status=Status(code=Status.STATUS_CODE_ERROR, message=one.error) if one.error else None,
    )
    if not timings.submitted:
        return

    def child(name: str, span_id: bytes, start: float, end: float, links: Sequence[Span.Link] = ()) -> Span:
        return Span(
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=own_id,
            trace_state=inner.state,
            flags=inner.flags,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=at(start),
            end_time_unix_nano=at(max(start, end)),
            links=links,
        )

    dispatched = timings.dispatched or one.ended
    yield child("queue", _beside(inner_id, 1), timings.submitted, dispatched)
    if not timings.dispatched:
        return
    entered = dispatched + timings.compute_input_s
    left = entered + timings.compute_infer_s if timings.finished else one.ended
    yield child("batch", _beside(inner_id, 2), dispatched, entered)
    yield child("compute", inner_id, entered, left, [_link(other) for other in one.links])


def _link(other: TraceContext) -> Span.Link:
    return Span.Link(
        trace_id=bytes.fromhex(other.trace_id), span_id=bytes.fromhex(other.span_id), trace_state=other.state,
        flags=other.flags,
    )  # fmt: skip


def _beside(inner_id: bytes, number: int) -> bytes:
    """The id of a sibling of the inner span: made from that one's, which nobody else has."""
    return ((int.from_bytes(inner_id, "big") + number) % (1 << 64) or number).to_bytes(8, "big")


def _attributes(values: Mapping[str, Attribute]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: Attribute) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(double_value=value)
