"""One HTTP/1.1 connection: a Reader's requests become Turns, and their answers go out in order.

Theory of operation
-------------------
`_turns` holds the requests begun and not yet written, in their order; `_waiting` those read while `max_pipelined` were
begun (at most one read's worth: reading pauses then). Only the first turn's bytes ever reach the transport.

Closing: if the client may still be sending when it is refused, the answer is followed by a FIN and what still comes is
thrown away for `linger_s`. Closing at once would reset the connection, and the reset destroys the answer on its way.

A client that is gone looks at first like one that has only finished sending: both are a FIN. While an answer is owed,
we find out by sending what every client must skip ("100 Continue", RFC 9110 15.2; in an event stream, a comment): the
kernel of a closed socket answers with a reset, which shows in our socket's state within a round trip. While reading is
paused the loop is told of neither, so we look for them ourselves.

An answer has its request's deadline: a reader who has not taken it by then is cut, as one who takes nothing for long.

No exception may leave a callback: uvloop would close the transport.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import cast

from penstock.core.errors import PenstockError
from penstock.core.messages import NO_DEADLINE
from penstock.protocols import HttpRequest, HttpResponse
from penstock.runtime.listeners.heads import CONTINUE, Rendered, plain_error
from penstock.runtime.listeners.reader import BODY, CLOSED, HEAD, START, Reader
from penstock.runtime.listeners.router import Found
from penstock.runtime.listeners.site import Site
from penstock.runtime.listeners.turn import Turn

log = logging.getLogger("penstock.http")

_LOOKS_S = (0.005, 0.03, 0.1)  # when to look for the probe's reset; after these, every tick
_PAUSED_LOOK_S = 0.025  # a queued request is to be gone 50 ms after its caller
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # linux/tcp_states.h; the state is the first byte of TCP_INFO
_SPARE_REFUSALS = 1000  # connections over the limit that are told so; more are dropped without a word


class Connection(asyncio.Protocol):
    """One client's connection. Lives on the loop's thread."""

    __slots__ = (
        "_beginning", "_closing_since", "_eof", "_lingering_since", "_looking", "_looks", "_reader", "_reading",
        "_send_by", "_sending", "_served", "_site", "_stopped", "_transport", "_turns", "_waiting", "_wakers",
        "_write_since", "counters", "door", "heads", "options",
    )  # fmt: skip

    def __init__(self, site: Site) -> None:
        self._site = site
        self.door = site.door
        self.heads = site.heads
        self.options = site.options
        self.counters = site.counters
        self._reader = Reader(site, self)
        self._transport: asyncio.Transport | None = None
        self._turns: deque[Turn] = deque()
        self._waiting: deque[Turn] = deque()
        self._wakers: list[asyncio.Future[None]] = []
        self._beginning = False
        self._reading = True
        self._served = False
        self._eof = False
        self._looks = 0
        self._looking = False  # for a client that left while nothing is read
        self._write_since: float | None = None  # the transport's buffer is full
        self._sending = NO_DEADLINE  # of the answer that was written last
        self._send_by = NO_DEADLINE  # of the answer that fills the buffer
        self._closing_since: float | None = None
        self._lingering_since: float | None = None
        self._stopped: PenstockError | None = None  # why nothing begins here any more

    # --- called by the transport ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        site, counters = self._site, self.counters
        counters.connections_total += 1
        counters.connections_open += 1
        site.connections.add(self)
        if site.serving < self.options.max_connections:
            site.serving += 1
            self._served = True
            return
        counters.refuse("connections")
        self._reader.close()
        if len(site.connections) > self.options.max_connections + _SPARE_REFUSALS:
            self.cut()
        else:
            self.refused(plain_error(503, "too many connections", ("Retry-After", "1")))

    def data_received(self, data: bytes) -> None:
        try:
            self.counters.bytes_received += len(data)
            self._reader.feed(data)
        except Exception:
            self._failed()

    def eof_received(self) -> bool:
        """The client sends no more. Keeps the transport open while an answer is owed (TLS cannot be half open)."""
        try:
            self._eof = True
            transport = self._transport
            if transport is None or self._lingering_since is not None or not (self._turns or self._waiting):
                return False
            if transport.get_extra_info("ssl_object") is not None:
                return False
            self._reader.close()
            if self._turns:
                self.write(self._turns[0].probe())
                self._look()
            return True
        except Exception:
            self._failed()
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            site = self._site
            self._transport = None
            site.connections.discard(self)
            site.serving -= self._served
            self.counters.connections_open -= 1
            if not site.connections:
                site.empty.set()
            self._reader.close()
            self._abandon_all()
            self._wake()
        except Exception:
            self._failed()

    def pause_writing(self) -> None:
        self._write_since = self._site.now
        turns = self._turns
        self._send_by = turns[0].deadline if turns and turns[0].started else self._sending
        self._steer()

    def resume_writing(self) -> None:
        self._write_since = None
        try:
            self._begin_waiting()
            self._steer()
            self._wake()
        except Exception:
            self._failed()

    # --- called by the reader -------------------------------------------------------------------------------------

    def request(self, http: HttpRequest, target: Found | HttpResponse, keep_alive: bool, http10: bool) -> None:
        turn = Turn(self, http, target, keep_alive, http10)
        turn.reason = self._stopped
        if self._waiting or self._write_since is not None or len(self._turns) >= self.options.max_pipelined:
            self._waiting.append(turn)
            self._steer()
        else:
            self._turns.append(turn)
            turn.begin()

    def refused(self, response: HttpResponse) -> None:
        turn = Turn(self, HttpRequest("", "", {}), response, keep_alive=False, http10=False)
        turn.lingers = True
        self._waiting.append(turn)
        self._begin_waiting()

    def say_continue(self) -> None:
        """Only when all answers before are out, or the client would take it for one of theirs."""
        reader = self._reader
        if reader.awaits_continue and not self._turns and not self._waiting:
            reader.awaits_continue = False
            reader.since = self._site.now
            self.write(CONTINUE)

    # --- called by the turns --------------------------------------------------------------------------------------

    def answered(self, turn: Turn) -> None:
        turns = self._turns
        if not turns or turns[0] is not turn:
            return  # abandoned, or others come first
        while turns and (output := turns[0].output) is not None:
            done = turns.popleft()
            self._sending = done.deadline
            self._send(output)
            if not done.keep_alive:
                self._close(done.lingers)
                return
        if self._waiting:
            self._begin_waiting()
            self._steer()
        if self._wakers:
            self._wake()
        if not turns:
            self._idle()

    def write(self, data: bytes) -> None:
        transport = self._transport
        if data and transport is not None and not transport.is_closing():
            self.counters.bytes_sent += len(data)
            transport.write(data)

    async def writable(self, turn: Turn) -> None:
        while self._write_since is not None or not self._turns or self._turns[0] is not turn:
            waker = asyncio.get_running_loop().create_future()
            self._wakers.append(waker)
            await waker

    def takes(self, turn: Turn) -> bool:
        return self._write_since is None and bool(self._turns) and self._turns[0] is turn

    def is_last(self, turn: Turn) -> bool:
        if not self._site.draining:
            return False
        if self._turns[-1] is not turn or self._waiting or self._reader.state in (HEAD, BODY):
            return False
        self._reader.close()
        return True

    # --- called by the listener -----------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        options, reader = self.options, self._reader
        # The clock of `since` may lag by one tick, so one is added: no time is ever cut short.
        slack = options.tick_s
        for since, limit in (
            (self._write_since, options.write_timeout_s),
            (self._closing_since, options.write_timeout_s),
            (self._lingering_since, options.linger_s),
        ):
            if since is not None and now - since > limit + slack:
                self.cut()
                return
        if self._write_since is not None and now > self._send_by + slack:
            self.cut()
            return
        if self._eof and self._turns:
            self._look_once()
        if reader.state == BODY and reader.late(now - slack):
            reader.refuse(504, "deadline", "the deadline passed while the request's body was on its way")
        if not self._reading or reader.state == CLOSED or reader.awaits_continue:
            return
        waited = now - reader.since - slack
        if reader.state == HEAD and waited > options.header_timeout_s:
            if reader.untouched:
                self._close(lingers=False)
            else:
                reader.refuse(408, "timeout", f"the request's head took over {options.header_timeout_s} s")
        elif reader.state == BODY and waited > options.body_timeout_s:
            reader.refuse(408, "timeout", f"the request's body took over {options.body_timeout_s} s")
        elif reader.state == START and waited > options.keep_alive_s and not self._turns:
            self._close(lingers=False)

    def wind_down(self) -> None:
        reader = self._reader
        idle = reader.state == START or (reader.state == HEAD and reader.untouched)
        if idle and not self._turns and not self._waiting:
            self._close(lingers=False)

    def stop(self, reason: PenstockError) -> None:
        """Ends what is being answered here with an error, whose bytes still go out. So does what comes later."""
        self._stopped = reason
        for turn in (*self._turns, *self._waiting):
            turn.stop(reason)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --------------------------------------------------------------------------------------------------------------

    def _failed(self) -> None:
        """The outermost catch: a defect of ours costs this connection, and nothing else."""
        log.exception("connection failed")
        self.cut()

    def _send(self, output: Rendered) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if isinstance(output, bytes):
            self.counters.bytes_sent += len(output)
            transport.write(output)
        else:
            self.counters.bytes_sent += sum(map(len, output))
            transport.writelines(output)

    def _idle(self) -> None:
        """Every answer is out."""
        reader = self._reader
        # While draining, an answer that was made before it says nothing: its client may be sending the next request.
        if self._eof or (self._site.closing and reader.state == START):
            self._close(lingers=False)
        elif reader.state == START:
            reader.since = self._site.now
        elif reader.awaits_continue:
            self.say_continue()

    def _begin_waiting(self) -> None:
        """Begins waiting requests while there is room. An answer given at once comes back here, and finds it busy."""
        if self._beginning:
            return
        self._beginning = True
        try:
            while self._waiting and self._write_since is None and len(self._turns) < self.options.max_pipelined:
                turn = self._waiting.popleft()
                self._turns.append(turn)
                turn.begin()
        finally:
            self._beginning = False

    def _steer(self) -> None:
        """Reads only while what is read can be worked on and answered."""
        transport = self._transport
        wanted = self._lingering_since is not None or (self._write_since is None and not self._waiting)
        if transport is None or transport.is_closing() or wanted == self._reading or self._eof:
            return
        self._reading = wanted
        if wanted:
            self._reader.since = self._site.now
            transport.resume_reading()
        else:
            transport.pause_reading()
            if not self._looking:
                self._looking = True
                asyncio.get_running_loop().call_later(_PAUSED_LOOK_S, self._look_paused)

    def _close(self, lingers: bool) -> None:
        """Closes when what is written has been sent."""
        transport = self._transport
        self._reader.close()
        self._abandon_all()
        if transport is None or transport.is_closing():
            return
        if lingers and not self._eof and transport.can_write_eof():
            self._lingering_since = self._site.now
            transport.write_eof()
            self._steer()
        else:
            self._closing_since = self._site.now
            transport.close()

    def _abandon_all(self) -> None:
        turns = (*self._turns, *self._waiting)
        self._turns.clear()
        self._waiting.clear()
        for turn in turns:
            turn.abandon()

    def _wake(self) -> None:
        wakers, self._wakers = self._wakers, []
        for waker in wakers:
            if not waker.done():
                waker.set_result(None)

    def _look(self) -> None:
        """Looks for the probe's reset a few times soon; `check` goes on looking."""
        if self._transport is not None and not self._look_once() and self._looks < len(_LOOKS_S):
            delay_s = _LOOKS_S[self._looks]
            self._looks += 1
            asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look_paused(self) -> None:
        """While nothing is read: looks whether the client has gone, with the probe as soon as it sends no more."""
        if self._transport is None or self._reading or self._transport.is_closing():
            self._looking = False
            return
        state = self._tcp_state()
        if state == _TCP_CLOSE:
            self.cut()
            return
        delay_s = _PAUSED_LOOK_S
        if state == _TCP_CLOSE_WAIT and self._turns and not self._looks:
            self._looks, delay_s = 1, _LOOKS_S[0]
            self.write(self._turns[0].probe())
        asyncio.get_running_loop().call_later(delay_s, self._look_paused)

    def _look_once(self) -> bool:
        """Whether the client has reset the connection, which is then cut."""
        if self._tcp_state() == _TCP_CLOSE:
            self.cut()
            return True
        return False

    def _tcp_state(self) -> int:
        """What the kernel says of the connection; 0 where it cannot be asked."""
        transport = self._transport
        if transport is None or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
        except OSError:
            return 0
