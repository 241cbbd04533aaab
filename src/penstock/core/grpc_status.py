"""The gRPC status of each error: code, details and trailers, for whatever speaks gRPC. Does not import grpc."""

from __future__ import annotations

from typing import Final

from penstock.core.errors import PenstockError, TooLarge

# Details travel in a header, each byte of text beyond ASCII as three; clients refuse headers beyond 8 KiB and then see
# neither code nor text. A character takes at most four bytes.
_MOST_DETAILS, _MOST_WIDE_DETAILS = 4000, 333

# Which HTTP status means the same, for what counts and logs answers of either protocol.
# Source: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md, and google.rpc.Code's comments.
_HTTP: Final = {
    "OK": 200, "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400,
    "ABORTED": 409, "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501, "INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}  # fmt: skip


def grpc_code(error: PenstockError) -> str:
    """The name of the error's code, except that too large is RESOURCE_EXHAUSTED: what grpc itself says of a message
    beyond the limit, so that a client meets one code whoever notices."""
    return "RESOURCE_EXHAUSTED" if isinstance(error, TooLarge) else error.code


def grpc_details(error: PenstockError) -> str:
    """The error's message, no longer than clients take."""
    return error.message[: _MOST_DETAILS if error.message.isascii() else _MOST_WIDE_DETAILS]


ERROR_TRAILER: Final = "penstock-error"


def grpc_trailers(error: PenstockError) -> tuple[tuple[str, str], ...]:
    """The error's type, which a code cannot tell (a full queue and a lost worker are both UNAVAILABLE), and when to
    come back: for people (`retry-after`, seconds) and for clients' own retries (`grpc-retry-pushback-ms`).

    Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (pushback; negative is never).
    """
    kind = (ERROR_TRAILER, type(error).__name__)
    if isinstance(error, TooLarge):
        return kind, ("grpc-retry-pushback-ms", "-1")
    if error.retry_after_s is None:
        return (kind,)
    return (
        kind,
        ("retry-after", f"{error.retry_after_s:g}"),
        ("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))),
    )


def http_status_of_code(name: str) -> int:
    """The HTTP status that means the same as a gRPC code; 500 for a name that is none."""
    return _HTTP.get(name, 500)
