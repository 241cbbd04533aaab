"""How a call to a replica went wrong, and how the caller is told. Imports grpc."""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Any, NoReturn

import grpc
import grpc.aio

from penstock.core.errors import Internal, PenstockError
from penstock.core.grpc_status import ERROR_TRAILER, grpc_code, grpc_details, grpc_trailers

Context = Any  # a grpc.aio.ServicerContext, which has no types
Pairs = tuple[tuple[str, str | bytes], ...]

_log = logging.getLogger("penstock.router")


class Fault(enum.Enum):
    """Whose fault an error of a call is, and what the replica may have done.

    UNREACHED: no connection; nothing was sent, so sending it elsewhere is always safe. REFUSED: the replica says that
    it could not take the call (`NotReady`, `Overloaded`), so no user code saw it. LOST: the connection broke while the
    call was open. SAID: the replica answered so itself."""

    UNREACHED = "unreached"
    REFUSED = "refused"
    LOST = "lost"
    SAID = "said"


_REFUSALS = frozenset(("NotReady", "Overloaded"))

# What grpc itself says of connections. A replica's own UNAVAILABLE comes with its own words; and with metadata, often.
# Seen with grpcio 1.80 to 1.85; tests notice other words.
_UNREACHED = ("failed to connect to all addresses", "connections to all backends failing")
_LOST = (
    "stream removed", "socket closed", "connection reset", "broken pipe", "recvmsg:", "sendmsg:", "goaway",
    "keepalive watchdog timeout", "ping timeout", "endpoint closing", "transport closed", "connection closed",
    "too many pings", "connection timed out", "end of tcp stream",
)  # fmt: skip


def fault_of(error: grpc.aio.AioRpcError) -> Fault:
    """What happened, as far as the status tells."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return Fault.SAID
    trailers = error.trailing_metadata()
    if trailers:
        return Fault.REFUSED if dict(trailers).get(ERROR_TRAILER) in _REFUSALS else Fault.SAID
    if error.initial_metadata():
        return Fault.SAID
    details = (error.details() or "").lower()
    if details.startswith(_UNREACHED):
        return Fault.UNREACHED
    return Fault.LOST if details.startswith(_LOST) else Fault.SAID


async def abort(context: Context, error: PenstockError) -> NoReturn:
    """Ends the caller's call with an error of the router's own."""
    await end(context, getattr(grpc.StatusCode, grpc_code(error)), grpc_details(error), grpc_trailers(error))


async def relay(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """Ends the caller's call as the replica ended its own: code, details and trailers, rich errors among them
    (`grpc-status-details-bin`)."""
    await end(context, error.code(), error.details() or "", pairs(error.trailing_metadata()))


async def end(context: Context, code: grpc.StatusCode, details: str, trailers: Pairs) -> NoReturn:
    """Ends a call with a status that is not OK.

    Raises:
        CancelledError: the call is over already; grpc would log its own error, with a traceback.
    """
    try:
        await context.abort(code, details, trailers)
    except (grpc.aio.InternalError, grpc.aio.UsageError):
        raise asyncio.CancelledError from None
    raise AssertionError("grpc's abort always raises")


def pairs(metadata: Any) -> Pairs:
    """Metadata as grpc takes it, from what grpc gives."""
    return tuple((key, value) for key, value in metadata or ())


def unexpected(method: str) -> Internal:
    """The error for an exception nobody foresaw, which is being handled and is logged here with its traceback."""
    _log.exception("unexpected error in a gRPC call", extra={"method": method[:200]})
    return Internal("internal error; the router's log has the traceback")
