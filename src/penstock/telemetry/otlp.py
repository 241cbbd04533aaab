"""Recorded requests as OpenTelemetry spans, sent over OTLP/HTTP. Imported only when a receiver is named.

Each request is a server span with three children: `queue` (waiting for a worker), `batch` (joined with others and
handed over) and `compute` (inside the model). The model's own spans are children of `compute`. In a joined batch, they
are children of the `compute` of its first recorded request, which is linked with those of the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from penstock.core.errors import InvalidInput
from penstock.core.trace import TraceContext
from penstock.telemetry.spans import Ended

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
except ImportError as error:
    raise InvalidInput(f"trace_endpoint needs OpenTelemetry: pip install 'penstock[otel]' ({error})") from None

# An attempt and its repetitions; meanwhile the queue fills up and is dropped.
_TIMEOUT_S = 10.0


class OtlpExporter:
    """Sends to one endpoint. Headers, certificates and more about the resource are taken from OpenTelemetry's own
    environment variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES, …)."""

    def __init__(self, endpoint: str, version: str) -> None:
        # Its complaints come with every batch; `Spans` counts them and complains once a minute.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        self._resource = Resource.create({"service.name": "penstock", "service.version": version})
        self._scope = InstrumentationScope("penstock", version)

    def export(self, ended: Sequence[Ended]) -> bool:
        """Whether the receiver has taken them."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        spans = [span for one in ended for span in self._spans(one, offset_ns)]
        try:
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:
            logging.getLogger("penstock.spans").exception("export_failed")
            return False

    def shutdown(self) -> None:
        """Ends a repetition early."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # of OpenTelemetry

    def _spans(self, one: Ended, offset_ns: int) -> Iterator[ReadableSpan]:
        timings, span = one.timings, one.span
        state = TraceState.from_header([span.inner.state]) if span.inner.state else None
        context = _context(span.inner._replace(span_id=span.span_id), state=state)
        parent = _context(span.inner._replace(span_id=span.parent_id), remote=True) if span.parent_id else None

        def at(seconds: float) -> int:
            return int(seconds * 1e9) + offset_ns

        def make(
            name: str, own: SpanContext, above: SpanContext | None, start: float, end: float, links: Sequence[Link] = ()
        ) -> ReadableSpan:
            server = own is context
            return ReadableSpan(
                name, own, above, self._resource,
                attributes=one.attributes if server else None,
                links=links,
                kind=SpanKind.SERVER if server else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, one.error) if server and one.error else Status(),
                start_time=at(start),
                end_time=at(max(start, end)),
                instrumentation_scope=self._scope,
            )  # fmt: skip

        yield make(one.name, context, parent, timings.received, one.ended)
        if not timings.submitted:
            return
        dispatched = timings.dispatched or one.ended
        yield make("queue", _beside(context, span.inner.span_id, 1), context, timings.submitted, dispatched)
        if not timings.dispatched:
            return
        entered = dispatched + timings.compute_input_s
        left = entered + timings.compute_infer_s if timings.finished else one.ended
        yield make("batch", _beside(context, span.inner.span_id, 2), context, dispatched, entered)
        linked = [Link(_context(other, remote=True)) for other in one.links]
        yield make("compute", _context(span.inner, state=state), context, entered, left, linked)


def _context(trace: TraceContext, *, remote: bool = False, state: TraceState | None = None) -> SpanContext:
    return SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), remote, TraceFlags(trace.flags), state)


def _beside(context: SpanContext, inner_id: str, number: int) -> SpanContext:
    """The context of a sibling of the inner span: its id is made from that one's, which nobody else has."""
    span_id = (int(inner_id, 16) + number) & ((1 << 64) - 1) or number
    return SpanContext(context.trace_id, span_id, False, context.trace_flags, context.trace_state)
