"""One connection to a replica: a request goes out, one answer comes back, and the connection goes into the pool again.

Theory of operation
-------------------
    IDLE ──send──▶ HEAD ──last line──▶ BODY ──last byte──▶ IDLE          (and closed, from anywhere)

The answer's framing is followed byte by byte, since a connection is used again only when both ends agree where the
answer ended. Most answers come in one read with their head: they go to the receiver in one call (`whole`).

A connection may end under a request: a replica that closes idle ones, or dies, crosses with it. Had the replica read
the request, its system would have ended the connection in order; a reset, with nothing before it, says that bytes of
ours lay there unread. Then nobody has seen the request, and it may be sent again. Source: RFC 2525, section 2.17;
tcp_close in net/ipv4/tcp.c. (Nothing of ours sets SO_LINGER on a connection to a router.)

No exception may leave a callback: uvloop would close the transport without a word.
"""

from __future__ import annotations

import asyncio
import logging
import select
from typing import TYPE_CHECKING, Final, Protocol, cast

from penstock.core.errors import Internal, NotReady, PenstockError, WorkerLost
from penstock.fleet.router.answer_head import MAX_BYTES, AnswerHead
from penstock.fleet.router.chunked import Chunked

if TYPE_CHECKING:
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.lanes import Upstream

log = logging.getLogger("penstock.router")

IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2

_SOONER_S: Final = 1.5  # than the replica: a tick or two of ours, and the way


class Receiver(Protocol):
    """Who gets the answer. After `whole`, `end` and `lost` the connection is not its any more."""

    head_only: bool  # the request was HEAD: its answer has no body

    def whole(self, connection: UpstreamConnection, head: AnswerHead, body: bytes) -> None:
        """The answer, complete."""

    def head(self, connection: UpstreamConnection, head: AnswerHead) -> None:
        """The head of an answer whose body follows with `pieces` and `end`."""

    def pieces(self, connection: UpstreamConnection, pieces: list[bytes]) -> None: ...

    def end(self, connection: UpstreamConnection) -> None: ...

    def lost(self, connection: UpstreamConnection, error: PenstockError) -> None:
        """No complete answer comes: the replica closed the connection (`WorkerLost`; `NotReady` if nothing of the
        request was read), or speaks no HTTP."""

    def writable(self, connection: UpstreamConnection) -> None:
        """The replica takes more of the request's body."""


class UpstreamConnection(asyncio.Protocol):
    """Made by `HttpFront.connect`. Lives on the loop's thread."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_front",
        "_keep",
        "_left",
        "_state",
        "idle_s",
        "idle_since",
        "paused",
        "receiver",
        "transport",
        "uploading",
        "upstream",
    )  # fmt: skip

    def __init__(self, front: HttpFront, upstream: Upstream) -> None:
        self._front = front
        self.upstream = upstream
        self.transport: asyncio.Transport | None = None
        self.receiver: Receiver | None = None
        self.idle_since = 0.0
        self.idle_s = front.options.upstream_idle_s  # so long it may be kept without a request
        self.paused = False  # the replica does not read as fast as we write
        self.uploading = False  # the request's body is not all sent: the connection cannot be used again
        self._state = IDLE
        self._buffer = b""
        self._left = -1  # bytes of the body; -1: until the connection ends
        self._chunked: Chunked | None = None
        self._keep = True

    @property
    def open(self) -> bool:
        transport = self.transport
        return transport is not None and not transport.is_closing()

    def usable(self, now: float) -> bool:
        """Whether an idle connection may have a request. `now`: as of the last tick.

        One that was idle through a tick is looked at: the replica may have closed it, and the loop not have come to it.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if self.idle_since == now:
            return True
        if now - self.idle_since > self.idle_s:
            return False
        waiting = select.poll()
        waiting.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not waiting.poll(0)  # bytes, or the end: nobody asked for either

    def send(self, receiver: Receiver, data: bytes) -> None:
        """Begins a request. `open` was looked at in the same turn of the loop."""
        self.receiver = receiver
        self._state = HEAD
        assert self.transport is not None
        self.transport.write(data)

    def write(self, data: bytes) -> None:
        """More of the request."""
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def hold(self) -> None:
        """Reads no more until `go_on`: the caller takes the answer slowly."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def go_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def cut(self) -> None:
        """Closes at once: tells the replica that nobody waits for the answer. The receiver hears nothing more."""
        self.receiver = None
        if self.transport is not None:
            self.transport.abort()

    # --- called by the transport ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._received(data)
        except PenstockError as error:
            self._lose(error)
        except Exception:
            log.exception("reading an answer failed")
            self._lose(Internal("internal error; the router's log has the traceback"))

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self.transport = None
            pool = self.upstream.pool
            if self in pool:
                pool.remove(self)
            if self.receiver is None:
                return
            if self._state == BODY and self._left < 0 and self._chunked is None and exc is None:
                self._keep = False
                self._end()
                return
            if isinstance(exc, ConnectionResetError) and self._state == HEAD and not self._buffer:
                self._lose(NotReady("the replica closed the connection before it read the request", retry_after_s=1.0))
            else:
                self._lose(WorkerLost("the replica closed the connection without a whole answer"))
        except Exception:
            log.exception("losing a connection failed")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        try:
            if self.receiver is not None:
                self.receiver.writable(self)
        except Exception:
            log.exception("going on with a request failed")
            self.cut()

    # --------------------------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:  # bytes that nobody asked for
            self.cut()
            return
        if self._state == BODY:
            self._body(receiver, data)
            return
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end == 3:
                if len(data) > MAX_BYTES:
                    raise Internal("the replica's answer is malformed: its head is too long")
                self._buffer = data
                return
            head = self._front.answers.read(data[:end])
            if not head.informational:
                break
            if head.status == 101:
                raise Internal("the replica's answer is malformed: it changes the protocol")
            data = data[end:]
        self._keep = head.keep_alive
        if head.idle_s is not None:  # ours is closed first, so that no request meets the end
            self.idle_s = min(self._front.options.upstream_idle_s, head.idle_s - _SOONER_S)
        size = len(data) - end
        length = 0 if head.bodiless or receiver.head_only else head.length
        if length is not None and size >= length:
            if size > length:
                self._keep = False
                data = data[: end + length]
            self._free()
            receiver.whole(self, head, data[end:])
            return
        self._state = BODY
        self._left = -1 if length is None else length
        self._chunked = Chunked() if head.chunked and length is None else None
        self._keep = self._keep and (head.chunked or length is not None)
        receiver.head(self, head)
        if size and self.receiver is receiver:
            self._body(receiver, data[end:])

    def _body(self, receiver: Receiver, data: bytes) -> None:
        chunked = self._chunked
        if chunked is not None:
            try:
                pieces, used = chunked.feed(data)
            except PenstockError as error:
                raise Internal(f"the replica's answer is malformed: {error.message}") from None
            if pieces:
                receiver.pieces(self, pieces)
            if chunked.done and self.receiver is receiver:
                self._keep = self._keep and used == len(data)
                self._end()
            return
        if self._left < 0:
            receiver.pieces(self, [data])
            return
        if len(data) > self._left:
            data = data[: self._left]
            self._keep = False
        self._left -= len(data)
        receiver.pieces(self, [data])
        if not self._left and self.receiver is receiver:
            self._end()

    def _end(self) -> None:
        receiver = self.receiver
        assert receiver is not None
        self._free()
        receiver.end(self)

    def _free(self) -> None:
        """The answer is complete: into the pool, or away."""
        self.receiver = None
        self._state = IDLE
        self._chunked = None
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        upstream, front = self.upstream, self._front
        room = len(upstream.pool) < front.options.upstream_idle
        if self._keep and not self.uploading and not upstream.gone and room and self.idle_s > 0:
            self.idle_since = front.now
            upstream.pool.append(self)
        else:
            transport.close()

    def _lose(self, error: PenstockError) -> None:
        receiver, self.receiver = self.receiver, None
        if self.transport is not None:
            self.transport.abort()
        if receiver is not None:
            receiver.lost(self, error)
