"""Trace and log settings, and the refusal of shared memory."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from penstock.core.door import Door
from penstock.core.errors import InvalidInput, Unsupported
from penstock.core.json_body import read_object
from penstock.core.messages import Parameter
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, Route


def routes() -> Sequence[Route]:
    """The routes of this module."""
    found: list[Route] = [
        CallRoute("GET", "/v2/logging", log_settings, "Log settings"),
        CallRoute("POST", "/v2/logging", update_log_settings, "Change log settings"),
    ]
    for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
        found.append(CallRoute("GET", path, trace_settings, "Trace settings"))
        found.append(CallRoute("POST", path, update_trace_settings, "Change trace settings"))
    for kind in ("/v2/systemsharedmemory", "/v2/cudasharedmemory"):
        for path in (kind, f"{kind}/region/{{region}}"):
            found.append(CallRoute("GET", f"{path}/status", refuse_shared_memory, "Not supported"))
            found.append(CallRoute("POST", f"{path}/unregister", refuse_shared_memory, "Not supported"))
        found.append(CallRoute("POST", f"{kind}/region/{{region}}/register", refuse_shared_memory, "Not supported"))
    return found


async def trace_settings(http: HttpRequest, door: Door) -> HttpResponse:
    """All settings in force."""
    return HttpResponse(200, orjson.dumps(dict(await door.trace_settings(http.match.get("model", "")))))


async def update_trace_settings(http: HttpRequest, door: Door) -> HttpResponse:
    """All settings in force after the change; null clears one back to the server's."""
    update = read_object(http.body)
    for key, value in update.items():
        texts = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(text, str) for text in texts):
            raise InvalidInput(f"trace setting '{key[:80]}' must be text, a list of texts, or null")
    return HttpResponse(200, orjson.dumps(dict(await door.trace_settings(http.match.get("model", ""), update))))


async def log_settings(http: HttpRequest, door: Door) -> HttpResponse:
    """All settings in force."""
    return HttpResponse(200, orjson.dumps(dict(await door.log_settings())))


async def update_log_settings(http: HttpRequest, door: Door) -> HttpResponse:
    """All settings in force after the change."""
    update: dict[str, Parameter] = {}
    for key, value in read_object(http.body).items():
        if not isinstance(value, bool | int | str):
            raise InvalidInput(f"log setting '{key[:80]}' must be true, false, a number or text")
        update[key] = value
    return HttpResponse(200, orjson.dumps(dict(await door.log_settings(update))))


async def refuse_shared_memory(http: HttpRequest, door: Door) -> HttpResponse:
    """Raises: Unsupported, always. A name that anybody can send must not open memory of another process."""
    raise Unsupported(
        "client shared memory is not supported: a region's name would let any client read memory of this machine; "
        "send tensors as binary data, which is read without copies"
    )
