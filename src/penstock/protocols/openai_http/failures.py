"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, and the headers that clients obey.

The client tells classes apart by status and tries 408, 409, 429 and 500 upwards again by itself, unless
`x-should-retry: false` says that work has begun. Source: `openai/_base_client.py` of the official client.
"""

from __future__ import annotations

import math
import uuid
from typing import Final

import orjson

from penstock.core import errors
from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.protocols import HttpRequest, HttpResponse

_REQUEST_ID: Final = b"x-request-id"

# `type` by status, and `code` by error where the refusal says none itself.
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES: Final[dict[type[PenstockError], str]] = {
    errors.Unauthenticated: "invalid_api_key",
    errors.PermissionDenied: "permission_denied",
    errors.NotFound: "model_not_found",
    errors.QuotaExceeded: "rate_limit_exceeded",
    errors.Overloaded: "overloaded",
    errors.NotReady: "model_not_ready",
    errors.WorkerLost: "engine_lost",
    errors.DeadlineExceeded: "deadline_exceeded",
    errors.Cancelled: "cancelled",
    errors.Unsupported: "unsupported",
    errors.TooLarge: "request_too_large",
}

# Trying these again costs the same work again, or cannot help: they are answered after the engine was asked.
_WORKED: Final = (errors.ServableError, errors.Internal, errors.DeadlineExceeded, errors.Cancelled)


def status_of(error: PenstockError) -> int:
    """The HTTP status. What a model cannot do is the caller's to change: 400, not 501, which clients try again."""
    return 400 if isinstance(error, errors.Unsupported) else http_status(error)


def error_object(error: PenstockError) -> dict[str, object]:
    """The value of `error`, which streams carry too."""
    status = status_of(error)
    parameter = problem = ""
    if isinstance(error, InvalidInput):
        parameter, problem = error.parameter, error.problem
    code = problem or next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "")
    if code == "model_not_found":
        parameter = "model"
    return {
        "message": error.message,
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": parameter or None,
        "code": code or None,
    }


def error_event(error: PenstockError) -> bytes:
    """The last event of a stream that failed."""
    return b'data: {"error":%b}\n\n' % orjson.dumps(error_object(error))


def refused(error: PenstockError, http: HttpRequest, begun: bool = False) -> HttpResponse:
    """The answer. `begun`: the engine has worked on this request already."""
    status = status_of(error)
    headers = error_headers(error) + request_id(http)
    if error.retryable and status in (429, 503):
        headers += (("Retry-After-Ms", str(max(1, math.ceil((error.retry_after_s or 1.0) * 1000)))),)
    lost = isinstance(error, errors.WorkerLost) and error.begun
    if begun or lost or isinstance(error, _WORKED):
        headers += (("X-Should-Retry", "false"),)
    return HttpResponse(status, b'{"error":%b}' % orjson.dumps(error_object(error)), headers=headers)


def request_id(http: HttpRequest) -> tuple[tuple[str, str], ...]:
    """The header that names a request, for callers who did not name it: the listener repeats those that did."""
    return () if _REQUEST_ID in http.headers else (("X-Request-Id", f"req_{uuid.uuid4().hex}"),)
