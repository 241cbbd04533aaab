"""One caller's connection: requests are read within limits, one at a time is on its way, answers go out in order.

Theory of operation
-------------------
    HEAD ──empty line──▶ BODY ──last byte──▶ BUSY ──answered──▶ HEAD          (and CLOSED, from anywhere)

A body up to `buffered_bytes` is read whole, so that it can be sent again; of a larger one the first part begins the
exchange, and what follows is read only as fast as the replica takes it. The next request of a connection that is busy
stays unread, but for `pipelined_bytes`.

Closing: if the caller may still be sending when it is refused, the answer is followed by a FIN, and what still comes is
thrown away for `linger_s`. Closing at once would reset the connection, and the reset destroys the answer on its way.

A caller that is gone looks at first like one that has only finished sending: both are a FIN. While an answer is owed we
find out by sending what every client skips (100 Continue; RFC 9110, section 15.2): the kernel of a closed socket
answers with a reset, which shows in our socket's state. One that leaves later is found by the same means, each tick.

No exception may leave a callback: uvloop would close the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from penstock.core.errors import Internal, PenstockError, TooLarge
from penstock.fleet.router.chunked import Chunked
from penstock.fleet.router.refusals import CONTINUE, answer, error_answer, plain_error
from penstock.fleet.router.request_head import Head, HeadRefused

if TYPE_CHECKING:
    from penstock.fleet.router.calls import Call
    from penstock.fleet.router.front import HttpFront
    from penstock.fleet.router.plan import Plan

log = logging.getLogger("penstock.router")

HEAD: Final = 0
BODY: Final = 1
BUSY: Final = 2
CLOSED: Final = 3

_JOINED_BYTES = 64 << 10  # a body up to this size is copied behind its head: one write is cheaper than two buffers
_LOOKS_S = (0.005, 0.03, 0.1)  # when to look for the probe's reset; after these, every tick
_TCP_CLOSE = 7  # linux/tcp_states.h; the state is the first byte of TCP_INFO


class ClientConnection(asyncio.Protocol):
    """Lives on the loop's thread."""

    __slots__ = (
        "_advancing", "_began", "_body", "_buffer", "_call", "_chunked", "_closes", "_ends_with_connection", "_eof",
        "_head", "_left", "_limit", "_lingering_since", "_looks", "_plan", "_reading", "_served", "_size", "_slot",
        "_started", "_state", "_streaming", "_upload_held", "_write_since", "front", "full", "since", "transport",
    )  # fmt: skip

    def __init__(self, front: HttpFront) -> None:
        self.front = front
        self.transport: asyncio.Transport | None = None
        self.since = front.now
        self.full = False  # the caller takes no more for now
        self._state = HEAD
        self._buffer = b""  # what was read and not looked at: a part of a head, or the next requests
        self._head: Head | None = None
        self._plan: Plan | None = None
        self._began = 0.0
        self._body: list[bytes] = []
        self._size = 0
        self._slot = 0  # of the deadline, while the body is on its way
        self._left = 0  # bytes of the body, of one with a length
        self._limit = 0
        self._chunked: Chunked | None = None
        self._streaming = False
        self._call: Call | None = None
        self._started = False  # the head of the answer is out
        self._ends_with_connection = False  # and so does its body
        self._closes = False  # the connection ends with the answer that is on its way
        self._advancing = False
        self._reading = True
        self._upload_held = False
        self._served = False
        self._eof = False
        self._looks = 0
        self._write_since: float | None = None
        self._lingering_since: float | None = None

    # --- called by the transport ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        front = self.front
        self._served = front.add(self)
        if not self._served:
            self._refuse_connection()

    def data_received(self, data: bytes) -> None:
        try:
            if self._state == HEAD and not self._buffer:
                self._began = self.front.clock()
            self._advance(data)
        except Exception:
            self._failed()

    def eof_received(self) -> bool:
        """The caller sends no more. Keeps the transport open while an answer is owed (TLS cannot be half open)."""
        try:
            self._eof = True
            if self.transport is None or self._lingering_since is not None or self._state != BUSY:
                return False
            if not self.transport.can_write_eof():
                return False
            self._probe()
            self._look()
            return True
        except Exception:
            self._failed()
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self.transport = None
            self._forget_deadline()
            self._state = CLOSED
            self._buffer, self._body = b"", []
            self.front.remove(self, self._served)
            call, self._call = self._call, None
            if call is not None:
                self.front.abandoned += 1
                call.abandon()
        except Exception:
            log.exception("losing a caller failed")

    def pause_writing(self) -> None:
        self.full = True
        self._write_since = self.front.now
        if self._call is not None:
            self._call.client_full(True)

    def resume_writing(self) -> None:
        try:
            self.full = False
            self._write_since = None
            if self._call is not None:
                self._call.client_full(False)
            elif self._state == HEAD and self._buffer:
                self._advance(b"")
        except Exception:
            self._failed()

    # --- reading --------------------------------------------------------------------------------------------------

    def _advance(self, data: bytes) -> None:
        """Takes what was read as far as it goes."""
        if self._lingering_since is not None or self._state == CLOSED:
            return
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        self._advancing = True
        try:
            while data:
                if self._state == HEAD and not self.full:
                    data = self._read_head(data)
                elif self._state == BODY:
                    data = self._read_body(data)
                elif self._state == CLOSED:
                    return
                else:
                    self._buffer = data
                    break
        except HeadRefused as refused:
            self._refuse(refused.status, refused.message)
        except PenstockError as error:
            self._refuse_with(error)
        finally:
            self._advancing = False
        if self._eof and (self._state == BODY or (self._state == HEAD and not (self.full and self._buffer))):
            self._close()  # nothing more comes, of a request that has begun neither
        self._steer()

    def _read_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n") + 4
        if end == 3:
            front = self.front
            if len(data) > front.options.max_header_bytes:
                raise HeadRefused(431, f"the request's head is over {front.options.max_header_bytes} bytes")
            if not self._size:
                self.since, self._size = front.now, 1  # the head's time begins with its first byte
            self._buffer = data
            return b""
        if data[:2] == b"\r\n":  # RFC 9112, section 2.2: an empty line before the request line is passed over
            return data[2:]
        self._size = 0
        front = self.front
        head = front.heads.read(data[:end])
        self._head = head
        plan = self._plan = front.plan(head)
        length = head.length or 0
        if not head.chunked and len(data) - end >= length:  # all of it is here
            stop = end + length
            self._begin(head, plan, data[end:stop], False)
            return data[stop:] if stop < len(data) else b""
        self._expect_body(head, plan, length)
        return data[end:]

    def _expect_body(self, head: Head, plan: Plan, length: int) -> None:
        front = self.front
        options = front.options
        self._state = BODY
        self.since = front.now
        self._body, self._size = [], 0
        self._left = length
        self._chunked = Chunked() if head.chunked else None
        if length > options.max_body_bytes:
            raise TooLarge(f"the request's body is over {options.max_body_bytes} bytes")
        self._limit = options.buffered_bytes if plan.service is not None else options.own_body_bytes
        front.let_in(head)  # bodies of strangers are not kept
        if plan.error is not None and (head.expects or length > options.buffered_bytes):
            self._refuse_with(plan.error)  # never raised: it is kept with the head, and would keep our frames with it
            return
        if head.expects:
            self.write(CONTINUE)
        self._slot = front.deadlines.add(self, self._began + plan.timeout_s)

    def expire(self) -> None:
        """The request's deadline has passed while its body was on its way."""
        if self._state == BODY and not self._streaming:
            self._refuse(504, "the deadline passed while the request's body was on its way")

    def _read_body(self, data: bytes) -> bytes:
        self.since = self.front.now
        chunked = self._chunked
        if chunked is not None:
            pieces, used = chunked.feed(data)
            over = chunked.done
        else:
            used = min(self._left, len(data))
            self._left -= used
            pieces = [data if used == len(data) else data[:used]]
            over = not self._left
        size = sum(map(len, pieces))
        self._size += size
        if self._size > self.front.options.max_body_bytes:
            raise TooLarge(f"the request's body is over {self.front.options.max_body_bytes} bytes")
        self._take(pieces, over)
        return data[used:] if used < len(data) else b""

    def _take(self, pieces: list[bytes], over: bool) -> None:
        head, plan = self._head, self._plan
        assert head is not None and plan is not None
        if self._streaming:
            call = self._call
            if over:
                self._state = BUSY
                self._streaming = False
            if call is not None and pieces:
                call.more(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if over and call is not None and self._call is call:
                call.no_more()
            return
        self._body += pieces
        if over:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            self._begin(head, plan, body, False)
        elif self._size > self._limit or self._size + self._left > self._limit:
            if plan.service is None:
                self._refuse_with(plan.error or TooLarge(f"the body is over {self._limit} bytes"))
                return
            body = b"".join(self._body)
            self._body = []
            self._streaming = True
            self.hold_upload()  # until a replica takes it
            self._begin(head, plan, body, True)

    def _begin(self, head: Head, plan: Plan, body: bytes, streams: bool) -> None:
        """Hands the request on."""
        self._forget_deadline()
        self._state = BODY if streams else BUSY
        self._started = False
        self._looks = 0
        self._call = call = self.front.call(self, head, plan, body, streams, self._began)
        try:
            call.begin()
        except PenstockError as error:
            call.fail(error)

    # --- called by the calls --------------------------------------------------------------------------------------

    def finish(self, head: bytes, body: bytes, request: Head) -> None:
        """Writes a whole answer; `head` is without its last line."""
        connection = self._connection_line(request)
        transport = self.transport
        if transport is not None and not transport.is_closing():
            if len(body) <= _JOINED_BYTES:
                transport.write(b"%b%b\r\n%b" % (head, connection, body))
            else:
                transport.writelines([b"%b%b\r\n" % (head, connection), body])
        self._answered()

    def start(self, head: bytes, request: Head, *, ends_with_connection: bool) -> None:
        """Writes the head of an answer whose body follows with `write`, until `end`."""
        self._ends_with_connection = ends_with_connection
        if ends_with_connection:
            self._closes = True
        self._started = True
        self.write(b"%b%b\r\n" % (head, self._connection_line(request)))

    def write(self, data: bytes) -> None:
        transport = self.transport
        if data and transport is not None and not transport.is_closing():
            transport.write(data)

    def end(self, data: bytes) -> None:
        """The answer is complete."""
        self.write(data)
        self._answered()

    def fail(self, error: PenstockError, request: Head, *, more: bytes = b"") -> None:
        """Writes an error as the answer."""
        connection = self._connection_line(request)
        _, data = error_answer(error, request.path, more=more + connection)
        self.write(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if request.method == b"HEAD" else data)
        self._answered()

    def reply(self, status: int, body: bytes, request: Head, content_type: str = "application/json") -> None:
        """Writes an answer of the router's own."""
        data = answer(status, body, content_type, more=self._connection_line(request))
        self.write(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if request.method == b"HEAD" else data)
        self._answered()

    def cut(self) -> None:
        """Closes the connection at once, without the end of what was begun."""
        if self.transport is not None:
            self.transport.abort()

    def break_off(self) -> None:
        """Ends an answer that has begun and cannot be completed: what was written still goes out, and then the framing
        tells that the rest is missing. Without framing only a reset tells it."""
        transport = self.transport
        if self._ends_with_connection and transport is not None:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.cut()
        else:
            self._call = None
            self._close()

    def hold_upload(self) -> None:
        """Reads no more of the body until `continue_upload`."""
        self._upload_held = True
        self._steer()

    def continue_upload(self) -> None:
        if self._upload_held:
            self._upload_held = False
            self.since = self.front.now
            self._steer()

    # --- called by the front --------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Ends what takes too long. The clock of `since` may lag by one tick, so one is added."""
        options = self.front.options
        now -= options.tick_s
        if self._lingering_since is not None:
            if now - self._lingering_since > options.linger_s:
                self.cut()
            return
        if self._write_since is not None and now - self._write_since > options.write_timeout_s:
            self.cut()
        elif self._state == HEAD and self._buffer:
            if now - self.since > options.header_timeout_s:
                self._refuse(408, f"the request's head took over {options.header_timeout_s:g} s")
        elif self._state == HEAD:
            if now - self.since > options.keep_alive_s and not self.full:
                self._close()
        elif self._state == BODY and not self._upload_held:
            if now - self.since > options.body_timeout_s:
                self._refuse(408, f"nothing of the request's body came for {options.body_timeout_s:g} s")
        elif self._eof and self._state == BUSY and not self._look_once():
            self._probe()

    def wind_down(self) -> None:
        """Closes when no request is on its way."""
        if self._state == HEAD and not self._buffer:
            self._close()

    # --------------------------------------------------------------------------------------------------------------

    def _connection_line(self, request: Head) -> bytes:
        if self._closes or self._streaming or not request.keep_alive or self.front.draining:
            self._closes = True
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if request.http10 else b""

    def _answered(self) -> None:
        """The answer is out: on with the next request, or the end."""
        self._call = None
        self._size = 0
        self._started = False
        if self._state == CLOSED:
            return
        if self._streaming or self._state == BODY:  # answered before the body was read
            self._streaming = False
            self._linger()
            return
        if self._closes:
            self._close()
            return
        self._state = HEAD
        self.since = self.front.now
        if not self._advancing and (self._buffer or self._eof):
            self._began = self.front.clock()
            self._advance(b"")

    def _steer(self) -> None:
        """Reads only what can be worked on."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._eof:
            return
        wanted = (
            not (self._upload_held and self._state == BODY)
            and len(self._buffer) <= max(self.front.options.pipelined_bytes, self.front.options.max_header_bytes)
        )  # fmt: skip
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def _refuse(self, status: int, message: str) -> None:
        """Answers, and reads no more."""
        self._stop(plain_error(status, message, more=self._error_line(status) + b"Connection: close\r\n"), str(status))

    def _refuse_with(self, error: PenstockError) -> None:
        path = "" if self._head is None else self._head.path
        self._stop(error_answer(error, path, more=b"Connection: close\r\n")[1], type(error).__name__)

    def _error_line(self, status: int) -> bytes:
        name = {413: b"TooLarge", 431: b"TooLarge", 504: b"DeadlineExceeded"}.get(status, b"InvalidInput")
        return b"Penstock-Error: %b\r\n" % name

    def _stop(self, data: bytes, reason: str) -> None:
        self.front.refuse(reason)
        call, self._call = self._call, None
        if call is not None:
            call.abandon()
        if not self._started:
            self.write(data)
            self._linger()
        else:
            self.break_off()

    def _refuse_connection(self) -> None:
        self._stop(
            plain_error(
                503, "too many connections",
                headers=(("Penstock-Error", "Overloaded"), ("Retry-After", "1"), ("Connection", "close")),
            ),
            "connections",
        )  # fmt: skip

    def _forget_deadline(self) -> None:
        """The body is complete, or nobody waits for it: what has its own deadline now is the call."""
        if self._slot:
            self.front.deadlines.discard(self, self._slot)
            self._slot = 0

    def _linger(self) -> None:
        transport = self.transport
        self._forget_deadline()
        self._state = CLOSED
        self._buffer, self._body = b"", []
        if transport is None or transport.is_closing():
            return
        if self._eof:
            transport.close()
            return
        self._lingering_since = self.front.now
        if transport.can_write_eof():  # not with TLS, whose callers know by the length that this is all
            transport.write_eof()
        if not self._reading:
            self._reading = True
            transport.resume_reading()

    def _close(self) -> None:
        self._state = CLOSED
        self._buffer = b""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def _failed(self) -> None:
        """The outermost catch: a defect of ours costs this connection, and nothing else."""
        log.exception("a caller's connection failed")
        self._closes = True  # what was read beside the failure is lost: the two ends are not in step any more
        try:
            if self._call is not None and not self._started:
                self._call.fail(Internal("internal error; the router's log has the traceback"))
            else:
                self.cut()
        except Exception:
            log.exception("answering a failure failed")
            self.cut()

    def _probe(self) -> None:
        """Sends what only a caller that is gone answers. The bytes of an answer that has begun do the same."""
        if not self._started and self._head is not None and not self._head.http10:
            self.write(CONTINUE)

    def _look(self) -> None:
        """Looks for the probe's reset a few times soon; `check` goes on looking."""
        if self.transport is not None and not self._look_once() and self._looks < len(_LOOKS_S):
            delay_s = _LOOKS_S[self._looks]
            self._looks += 1
            self.front.loop.call_later(delay_s, self._look)

    def _look_once(self) -> bool:
        """Whether the caller has reset the connection, which is then cut."""
        transport = self.transport
        if transport is None or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            state = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return False
        if state == _TCP_CLOSE:
            self.cut()
            return True
        return False
