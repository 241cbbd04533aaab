"""Sends requests over gRPC when they are due.

The deadline travels as V2's `timeout`, not as the call's own: a call ends itself at its own deadline, and then nobody
could tell a server that answers in time that it is late from one that never answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from penstock.client.options import Tls
from penstock.core.errors import InvalidInput, PenstockError
from penstock.ledger import book
from penstock.ledger.book import Entry, Outcome, Target
from penstock.ledger.payloads import Payloads

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
# grpcio puts all calls of a channel on one connection; a server with several processes takes several.
_CHANNELS: Final = 4
_BY_CODE: Final[dict[str, Outcome]] = {
    "RESOURCE_EXHAUSTED": book.QUOTA,
    "UNAVAILABLE": book.UNAVAILABLE,
    "DEADLINE_EXCEEDED": book.DEADLINE,
    "INVALID_ARGUMENT": book.INVALID,
    "NOT_FOUND": book.INVALID,
    "UNAUTHENTICATED": book.INVALID,
    "OUT_OF_RANGE": book.INVALID,
}
# What grpcio itself says with UNAVAILABLE, when no server said anything.
_CONNECT_FAILED: Final = ("failed to connect", "connection refused", "name resolution", "connect failed")
_CONNECTION_ENDED: Final = (
    "socket closed",
    "connection reset",
    "stream removed",
    "goaway",
    "broken pipe",
    "rst_stream",
)


class GrpcSender:
    """Requests to one model of one server. Lives on one loop; `close` when done."""

    def __init__(self, target: Target, payloads: Payloads, clock: Callable[[], float], patience_s: float) -> None:
        if target.grpc is None:
            raise InvalidInput("requests over gRPC need the server's gRPC address")
        self._payloads, self._clock, self._patience_s = payloads, clock, patience_s
        self._channels = [channel(target, number) for number in range(_CHANNELS)]
        self._calls = [one.unary_unary(METHOD) for one in self._channels]
        self._metadata = [("authorization", f"Bearer {target.api_key}")] if target.api_key else []
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, entry: Entry, done: Callable[[Entry], None]) -> None:
        """Sends at once. `done` is called once, when the request has its outcome."""
        task = asyncio.get_running_loop().create_task(self._send(entry, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Closes all connections. Requests without an outcome keep none."""
        for task in list(self._tasks):
            task.cancel()
        for one in self._channels:
            await one.close()

    async def _send(self, entry: Entry, done: Callable[[Entry], None]) -> None:
        import grpc.aio

        now = self._clock()
        entry.tried = entry.sent = now
        left_s = entry.scheduled + entry.deadline_s - now
        call = self._calls[entry.number % len(self._calls)](
            self._payloads.grpc_body(entry.payload, entry.id, left_s), metadata=self._metadata
        )
        leave_s = None if entry.leave_after_s is None else max(0.0, entry.scheduled + entry.leave_after_s - now)
        wait_s = left_s + self._patience_s if leave_s is None else leave_s
        try:
            async with asyncio.timeout(wait_s):
                body = await call
        except TimeoutError:
            call.cancel()
            entry.end(self._clock(), book.LOST if leave_s is None else book.LEFT)
        except grpc.aio.AioRpcError as error:
            entry.end(self._clock(), *_failed(error))
        else:
            self._answered(entry, body)
        finally:
            done(entry)

    def _answered(self, entry: Entry, body: bytes) -> None:
        now = self._clock()
        try:
            request_id, entry.version, outputs = self._payloads.read_grpc(body)
        except PenstockError as error:
            entry.end(now, book.ERROR, "OK", f"the answer cannot be read: {error}")
            return
        if request_id and request_id != entry.id:
            entry.crossed = f"it carries the id {request_id}"
        else:
            entry.crossed = self._payloads[entry.payload].wrong(outputs)
        entry.end(now, book.OK, "OK")


def channel(target: Target, number: int) -> Any:
    """A new channel with a connection of its own; channels with the same options share one."""
    import grpc
    import grpc.aio

    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("penstock.channel", number),
    ]
    if not target.url.startswith("https"):
        return grpc.aio.insecure_channel(target.grpc, options)
    return grpc.aio.secure_channel(target.grpc, credentials(target.tls), options)


def credentials(tls: Tls) -> Any:
    """What `tls` says, in gRPC's form. Raises: OSError when a file cannot be read."""
    import grpc

    roots, cert = (Path(file).read_bytes() if file else None for file in (tls.ca_file, tls.client_cert))
    key = Path(tls.client_key).read_bytes() if tls.client_key else cert
    return grpc.ssl_channel_credentials(roots, key, cert)


def _failed(error: Any) -> tuple[Outcome, str, str]:
    code, detail = error.code().name, error.details() or ""
    outcome: Outcome = _BY_CODE.get(code, book.ERROR)
    said = detail.lower()
    if outcome == book.UNAVAILABLE and any(words in said for words in _CONNECT_FAILED):
        outcome = book.REFUSED
    elif outcome == book.UNAVAILABLE and any(words in said for words in _CONNECTION_ENDED):
        outcome = book.CUT
    return outcome, code, detail
