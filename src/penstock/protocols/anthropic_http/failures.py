"""Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

The official client tells classes apart by status, and tries 408, 409, 429 and 500 upwards again by itself, unless
`x-should-retry: false` says that work has begun. A full queue is 503 and not Anthropic's own 529, because routers
before this server move a request elsewhere on 503; its type is `overloaded_error` as there.
"""

from __future__ import annotations

import math
import uuid
from typing import Final

import orjson

from penstock.core import errors
from penstock.core.errors import PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.protocols import HttpRequest, HttpResponse

_TYPES: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 504: "timeout_error",
}  # fmt: skip

# Trying these again costs the same work again, or cannot help.
_WORKED: Final = (errors.ServableError, errors.Internal, errors.DeadlineExceeded, errors.Cancelled)


def status_of(error: PenstockError) -> int:
    """The HTTP status. What a model cannot do is the caller's to change: 400, not 501, which clients try again."""
    return 400 if isinstance(error, errors.Unsupported) else http_status(error)


def type_of(error: PenstockError) -> str:
    """What Anthropic's API calls such an error."""
    if isinstance(error, (errors.Overloaded, errors.NotReady)):
        return "overloaded_error"
    status = status_of(error)
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_document(error: PenstockError, request_id: str) -> bytes:
    """The body of an answer, and the data of a stream's last event."""
    inner = {"type": type_of(error), "message": error.message}
    return orjson.dumps({"type": "error", "error": inner, "request_id": request_id})


def refused(error: PenstockError, http: HttpRequest, request_id: str, begun: bool = False) -> HttpResponse:
    """The answer. `begun`: the engine has worked on this request already."""
    headers = (*error_headers(error), ("Request-Id", request_id))
    status = status_of(error)
    if error.retryable and status in (429, 503):
        headers += (("Retry-After-Ms", str(max(1, math.ceil((error.retry_after_s or 1.0) * 1000)))),)
    lost = isinstance(error, errors.WorkerLost) and error.begun
    if begun or lost or isinstance(error, _WORKED):
        headers += (("X-Should-Retry", "false"),)
    return HttpResponse(status, error_document(error, request_id), headers=headers)


def request_id_of(http: HttpRequest) -> str:
    """How the request is called: as its caller says, or newly made up."""
    return http.header(b"x-request-id")[:128] or f"req_{uuid.uuid4().hex}"
