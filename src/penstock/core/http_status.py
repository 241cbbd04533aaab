"""The HTTP status of each error: one table for every protocol over HTTP."""

from __future__ import annotations

import math
from typing import Final

from penstock.core import errors
from penstock.core.errors import PenstockError

# What a caller should do decides the number: 4xx repair the request, 429 wait for your own quota, 503 try again here
# or elsewhere, 504 your deadline passed, 500 tell whoever runs the model. 499 is nginx's "client closed request":
# nobody reads it but the log. AlreadyExists is 409 although Triton answers 400, because the request itself is right.
_STATUS: Final[dict[type[PenstockError], int]] = {
    errors.TooLarge: 413,
    errors.InvalidInput: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.QuotaExceeded: 429,
    errors.Cancelled: 499,
    errors.Unsupported: 501,
    errors.Overloaded: 503,
    errors.NotReady: 503,
    errors.WorkerLost: 503,
    errors.DeadlineExceeded: 504,
}


def http_status(error: PenstockError) -> int:
    """The status of an error; 500 for those that are the model's fault or ours."""
    for kind in type(error).__mro__:
        if status := _STATUS.get(kind):
            return status
    return 500


def error_headers(error: PenstockError) -> tuple[tuple[str, str], ...]:
    """The headers that go with an error: its type, which a status cannot tell (a full queue and a lost worker are both
    503), when to try again (whole seconds, at least 1), how to say who one is."""
    kind = ("Penstock-Error", type(error).__name__)
    if isinstance(error, errors.Unauthenticated):
        return kind, ("WWW-Authenticate", "Bearer")
    if error.retryable:
        return kind, ("Retry-After", str(max(1, math.ceil(error.retry_after_s or 1))))
    return (kind,)
