"""Errors as gRPC statuses. Imports grpc; import it only when listening."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NoReturn

import grpc
import grpc.aio

from penstock.core.errors import Internal, PenstockError
from penstock.core.grpc_status import grpc_code, grpc_details, grpc_trailers

_log = logging.getLogger("penstock.grpc")


def status_of(error: PenstockError) -> grpc.StatusCode:
    """The error's code, as `core.grpc_status` names it."""
    code: grpc.StatusCode = getattr(grpc.StatusCode, grpc_code(error))
    return code


async def abort(context: Any, error: PenstockError) -> NoReturn:
    """Ends the call of this grpc.aio.ServicerContext with the error's status.

    Raises:
        CancelledError: the call is over already. grpc would log its own error, with a traceback, for each client that
            left or was late in this moment.
    """
    try:
        await context.abort(status_of(error), grpc_details(error), grpc_trailers(error))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
    raise AssertionError("grpc's abort always raises")


def unexpected(method: str) -> Internal:
    """The error for an exception nobody foresaw, which is being handled and is logged here with its traceback."""
    _log.exception("unexpected error in a gRPC call", extra={"method": method})
    return Internal("internal error; the server's log has the traceback")
