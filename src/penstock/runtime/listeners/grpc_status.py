"""Errors as gRPC statuses. Imports grpc; import it only when listening."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NoReturn

import grpc
import grpc.aio

from penstock.core.errors import Internal, PenstockError, TooLarge

_log = logging.getLogger("penstock.grpc")

# Details travel in a header, each byte of text beyond ASCII as three; clients refuse headers beyond 8 KiB and then see
# neither code nor text. A character takes at most four bytes.
_MOST_DETAILS, _MOST_WIDE_DETAILS = 4000, 333


def status_of(error: PenstockError) -> grpc.StatusCode:
    """The error's own code, except that too large is RESOURCE_EXHAUSTED: what grpc itself says of a message beyond the
    limit, so that a client meets one code whoever notices."""
    if isinstance(error, TooLarge):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    code: grpc.StatusCode = getattr(grpc.StatusCode, error.code)
    return code


def trailers_of(error: PenstockError) -> tuple[tuple[str, str], ...]:
    """When to come back, for people (`retry-after`, seconds) and for clients' own retries (`grpc-retry-pushback-ms`).

    Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (pushback; negative is never).
    """
    if isinstance(error, TooLarge):
        return (("grpc-retry-pushback-ms", "-1"),)
    if error.retry_after_s is None:
        return ()
    return (
        ("retry-after", f"{error.retry_after_s:g}"),
        ("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))),
    )


async def abort(context: Any, error: PenstockError) -> NoReturn:
    """Ends the call of this grpc.aio.ServicerContext with the error's status.

    Raises:
        CancelledError: the call is over already. grpc would log its own error, with a traceback, for each client that
            left or was late in this moment.
    """
    details = error.message[: _MOST_DETAILS if error.message.isascii() else _MOST_WIDE_DETAILS]
    try:
        await context.abort(status_of(error), details, trailers_of(error))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
    raise AssertionError("grpc's abort always raises")


def unexpected(method: str) -> Internal:
    """The error for an exception nobody foresaw, which is being handled and is logged here with its traceback."""
    _log.exception("unexpected error in a gRPC call", extra={"method": method})
    return Internal("internal error; the server's log has the traceback")
