"""What an operator's machines ask for: probes in the words of Kubernetes, and the metrics."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from penstock.core.door import Door
from penstock.core.errors import PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.core.json_body import error_json
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, Route


class AdminHttp:
    """The routes and their errors."""

    name = "admin_http"
    title = "Operation"

    def routes(self) -> Sequence[Route]:
        """Every path."""
        return [
            CallRoute("GET", "/livez", live, "Whether the server runs", public=True),
            CallRoute("GET", "/readyz", ready, "Whether every model answers", public=True),
            CallRoute("GET", "/metrics", metrics, "Metrics in Prometheus' text format"),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"error": …}` with the status of `core.http_status`."""
        return HttpResponse(http_status(error), error_json(error), headers=error_headers(error))


async def live(http: HttpRequest, door: Door) -> HttpResponse:
    """200 or 503."""
    return _state("live", door.live())


async def ready(http: HttpRequest, door: Door) -> HttpResponse:
    """200 or 503. It names no model, since anybody may ask."""
    return _state("ready", door.ready())


async def metrics(http: HttpRequest, door: Door) -> HttpResponse:
    """The text of all processes of this server."""
    return HttpResponse(200, await door.metrics(), "text/plain; version=0.0.4; charset=utf-8")


def _state(name: str, holds: bool) -> HttpResponse:
    body = orjson.dumps({"status": name if holds else f"not {name}"})
    return HttpResponse(200 if holds else 503, body, headers=(("Cache-Control", "no-store"),))


plug = AdminHttp()
