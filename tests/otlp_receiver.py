"""An OTLP/HTTP receiver on loopback, as a collector would be: it decodes what comes and keeps the spans."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """`spans` are all that came, each with `service` and decoded `fields`."""

    def __init__(self, status: int = 200, delay_s: float = 0.0) -> None:
        self.spans: list[Received] = []
        self.status = status
        self.delay_s = delay_s
        self.posts = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.posts += 1
                time.sleep(receiver.delay_s)
                if receiver.status == 200:
                    message = ExportTraceServiceRequest.FromString(body)
                    for resource in message.resource_spans:
                        named = {item.key: item.value.string_value for item in resource.resource.attributes}
                        for scope in resource.scope_spans:
                            receiver.spans += [Received(span, named.get("service.name", "")) for span in scope.spans]
                with contextlib.suppress(OSError):
                    self.send_response(receiver.status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def wait_for(self, count: int, name: str = "", timeout_s: float = 20.0) -> list[Received]:
        """At least `count` spans (called `name`), as soon as they are there."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = [span for span in self.spans if name in ("", span.name)]
            if len(found) >= count:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{count} spans {name!r} did not come: {[span.name for span in self.spans]}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Received:
    """One span as it came."""

    def __init__(self, span: Span, service: str) -> None:
        self.service = service
        self.name = span.name
        self.trace_id, self.span_id, self.parent_id = (
            part.hex() for part in (span.trace_id, span.span_id, span.parent_span_id)
        )
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.kind, self.status = span.kind, span.status.code
        self.state = span.trace_state
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.fields = {
            item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes
        }


@contextlib.contextmanager
def receiving(status: int = 200, delay_s: float = 0.0) -> Iterator[Receiver]:
    receiver = Receiver(status, delay_s)
    try:
        yield receiver
    finally:
        receiver.close()
