"""One HTTP request from its last byte to its answer.

A Turn is made by a connection when a request is whole, runs it through the protocol and the door, and holds the
rendered answer until the turns before it on the same connection have been written (pipelined answers go out in order).

An inference costs no task: `door.submit` gives a future, whose callback encodes and writes. Calls and streams are rarer
and get a task each, owned by their Turn and cancelled with it when the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from functools import partial
from typing import TYPE_CHECKING, Protocol

from penstock.core.errors import Cancelled, Internal, InvalidInput, PenstockError
from penstock.core.http_status import http_status
from penstock.core.language import KIND
from penstock.core.messages import NO_DEADLINE, Request, Response, Timings
from penstock.protocols import (
    CallRoute,
    Exchange,
    Handler,
    HttpRequest,
    HttpResponse,
    HttpStream,
    InferRoute,
    StreamExchange,
)
from penstock.runtime.listeners.heads import (
    CONTINUE,
    LAST_CHUNK,
    Rendered,
    chunk,
    plain_error,
    render_headers,
    retry_after,
)
from penstock.runtime.listeners.reader import TIMEOUT, timeout_of
from penstock.runtime.listeners.router import Found
from penstock.runtime.listeners.witness import Sight, take_http_trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from penstock.core.door import Door
    from penstock.runtime.listeners.heads import Heads
    from penstock.runtime.listeners.http_options import HttpCounters, HttpOptions

log = logging.getLogger("penstock.http")

_TIMING = b"penstock-timing"
_REQUEST_ID = b"x-request-id"
_TRACEPARENT = b"traceparent"
_LEFT = 499  # nginx's status of a client that did not wait
_REQUEST_ID_CHARACTERS = 128
_COMMENT = chunk(b":\n\n")
_NO_TOKEN = re.compile(r"[^A-Za-z0-9_.-]")
_MOST_STEPS = 32  # of a graph, in one header


class Wire(Protocol):
    """What a turn asks of its connection."""

    door: Door
    heads: Heads
    options: HttpOptions
    counters: HttpCounters

    def answered(self, turn: Turn) -> None:
        """`turn.output` is there: write it when it is this turn's turn."""

    def write(self, data: bytes) -> None:
        """Writes at once, if the connection is still there."""

    async def writable(self, turn: Turn) -> None:
        """Returns once `turn` is the first of its connection and the client takes data."""

    def takes(self, turn: Turn) -> bool:
        """Whether `writable` would return at once."""

    def is_last(self, turn: Turn) -> bool:
        """Whether `turn` is the last that this connection answers, because the listener is draining."""

    def cut(self) -> None:
        """Closes the connection at once, without the end of what was begun."""


class Turn:
    """One request and its answer."""

    __slots__ = (
        "abandoned", "admitted", "comments", "deadline", "exchange", "future", "head_only", "http", "http10",
        "keep_alive", "lingers", "output", "reason", "sight", "started", "target", "task", "wire",
    )  # fmt: skip

    def __init__(
        self, wire: Wire, http: HttpRequest, target: Found | HttpResponse, keep_alive: bool, http10: bool
    ) -> None:
        self.wire = wire
        self.http = http
        self.target = target  # where it goes, or the answer it gets without going anywhere
        self.keep_alive = keep_alive
        self.http10 = http10
        self.head_only = http.method == "HEAD"
        self.lingers = False  # the answer goes out while the client may still be sending
        self.deadline = NO_DEADLINE  # the caller's own, for the sending too
        self.started = False  # a stream whose head is out
        self.comments = False  # a started stream in which comments may stand between events
        self.abandoned = False
        self.output: Rendered | None = None
        self.future: asyncio.Future[Response] | None = None
        self.task: asyncio.Task[None] | None = None
        self.exchange: Exchange | None = None
        self.reason: PenstockError | None = None  # why it was told to stop
        self.admitted = False
        self.sight: Sight | None = None  # None although it was admitted: there is nothing to note

    def begin(self) -> None:
        """Starts the work. Never raises; `wire.answered` is called once, now or later, unless `abandon` comes first."""
        target = self.target
        try:
            if not isinstance(target, Found):
                self.answer(target)
                return
            if self.reason is not None:
                self.fail(self.reason)
                return
            route = target.route
            if isinstance(route, CallRoute):
                self._start_call(route.handle)
            elif route.language is not None and self._asks_language():
                self._start_call(route.language)
            elif isinstance(route, InferRoute):
                self.exchange = exchange = route.decode(self.http, self.wire.door)
                self._admit(exchange.request)
                self.future = future = self.wire.door.submit(exchange.request)
                if future.done():
                    self._finished(future)
                else:
                    future.add_done_callback(self._finished)
            else:
                stream = route.decode(self.http, self.wire.door)
                self._admit(stream.request)
                pieces = HttpStream(self._encoded(stream), stream.encode_error, stream.content_type)
                self.task = asyncio.get_running_loop().create_task(self._send(pieces))
        except PenstockError as error:
            self.fail(error)
        except Exception as error:
            self.crash(error)

    def _start_call(self, handle: Handler) -> None:
        self.deadline = self.http.deadline = self._told_deadline()
        self.task = asyncio.get_running_loop().create_task(self._call(handle))

    def _asks_language(self) -> bool:
        """Whether the model in the path is a language model. Raises: NotFound, NotReady."""
        match = self.http.match
        return KIND in self.wire.door.signature(match["model"], match.get("version", "")).metadata

    def probe(self) -> bytes:
        """What may be sent now without changing the answer, to see whether the client is still there."""
        if self.http10 or self.output is not None:
            return b""
        if not self.started:
            return CONTINUE
        return _COMMENT if self.comments else b""

    def abandon(self) -> None:
        """The client left: takes the request out of the queue, stops the stream or the call."""
        self.abandoned = True
        if self.output is None:
            self.wire.counters.abandoned += 1
            self._note(_LEFT)
        if self.future is not None:
            self.future.cancel()
        if self.task is not None:
            self.task.cancel()

    def stop(self, reason: PenstockError) -> None:
        """Ends what still runs, and what has not begun: answered with `reason`, or a stream whose head is out, with its
        event."""
        if self.output is None and not self.abandoned:
            self.reason = reason
            if self.future is not None:
                self.future.cancel()
            elif self.task is not None:
                self.task.add_done_callback(self._unsaid)
                self.task.cancel()

    def _unsaid(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before it began answers nothing."""
        if self.output is None and not self.started:
            self._stopped()

    def answer(self, response: HttpResponse, timings: Timings | None = None) -> None:
        """Renders the answer and gives it to the connection."""
        if self.abandoned:
            return
        wire, headers = self.wire, self.http.headers
        if self.keep_alive and wire.is_last(self):
            self.keep_alive = False
        connection = (None if not self.http10 else True) if self.keep_alive else False
        extra = self._headers(timings) if _REQUEST_ID in headers or timings is not None else b""
        if self.http.notes:
            extra += render_headers(tuple(self.http.notes))
        self.output = wire.heads.render(response, connection, extra, head_only=self.head_only)
        wire.counters.responses[response.status // 100] += 1
        if wire.options.witness is not None and (self.sight is not None or not self.admitted):
            self._note(response.status)
        wire.answered(self)

    def fail(self, error: PenstockError) -> None:
        """Answers with an error in the words of the route's protocol."""
        target = self.target
        if isinstance(target, Found):
            try:
                response = target.protocol.encode_error(error, self.http)
            except Exception:
                log.exception("encode_error failed", extra={"protocol": target.protocol.name, "path": self.http.path})
                response = plain_error(500, "internal error")
        else:
            response = plain_error(500, "internal error")
        if response.status in (429, 503) and not any(name.lower() == "retry-after" for name, _ in response.headers):
            response.headers += (("Retry-After", retry_after(error.retry_after_s)),)
        self.answer(response)

    def crash(self, error: BaseException) -> None:
        """Logs a defect with its traceback, once, and answers 500 without its text."""
        log.error("request failed", exc_info=error, extra={"method": self.http.method, "path": self.http.path})
        try:
            self.fail(Internal("internal error; the server's log has the traceback"))
        except Exception:
            log.exception("answer failed", extra={"path": self.http.path})
            self.keep_alive = False
            self.output = b""  # nothing can be said; the connection closes
            self.wire.answered(self)

    def _admit(self, request: Request) -> None:
        """Gives the request its times and lets go of the body: decoded inputs that look into it keep it alive."""
        http = self.http
        http.body = b""
        request.timings.received = http.received
        request.caller = http.caller
        if _TRACEPARENT in http.headers:
            take_http_trace(request, http.headers)
        witness = self.wire.options.witness
        if witness is not None:
            self.admitted = True
            self.sight = witness.see(request)
        if request.deadline != NO_DEADLINE and http.began:
            request.deadline -= http.received - http.began
        request.deadline = min(request.deadline, self._told_deadline())
        self.deadline = request.deadline

    def _told_deadline(self) -> float:
        """What the caller's header says of a deadline. Raises: InvalidInput."""
        text = self.http.headers.get(TIMEOUT)
        if text is None:
            return NO_DEADLINE
        timeout_s = timeout_of(text)
        if timeout_s is None:
            raise InvalidInput("penstock-timeout-ms must be a number of milliseconds above 0")
        return (self.http.began or self.http.received) + timeout_s

    def _finished(self, future: asyncio.Future[Response]) -> None:
        """The door has answered: encode and write. Runs as the future's callback.

        An error is looked at, not raised: raising would tie it to this frame in a cycle for the collector to find.
        """
        if self.abandoned:
            if not future.cancelled():
                future.exception()  # seen, so that the loop does not report it as never retrieved
            return
        try:
            if future.cancelled():
                self._stopped()
                return
            error = future.exception()
            if error is None:
                response = future.result()
                assert self.exchange is not None
                if self.sight is not None:
                    self.sight.response = response
                encoded = self.exchange.encode(response)
                timed = self.wire.options.timing_headers or self.http.headers.get(_TIMING) == b"1"
                self.answer(encoded, response.timings if timed else None)
            elif isinstance(error, PenstockError):
                self.fail(error)
            else:
                self.crash(error)
        except PenstockError as raised:
            self.fail(raised)
        except Exception as raised:
            self.crash(raised)

    async def _call(self, handle: Handler) -> None:
        try:
            answer = await handle(self.http, self.wire.door)
            if isinstance(answer, HttpStream):
                await self._send(answer)
            else:
                self.answer(answer)
        except asyncio.CancelledError:
            self._stopped()
        except PenstockError as error:
            self.fail(error)
        except Exception as error:
            self.crash(error)

    def _stopped(self) -> None:
        """Cancelled: by `abandon`, when nobody is left to answer, or by the door, which then still owes an answer."""
        if not self.abandoned:
            self.fail(self.reason or Cancelled("the request was cancelled"))

    async def _encoded(self, exchange: StreamExchange) -> AsyncIterator[bytes]:
        """The door's answers as the protocol writes them, and its end."""
        items = self.wire.door.stream(exchange.request)
        try:
            async for item in items:
                if self.sight is not None and not self.started:
                    self.sight.response = item
                yield exchange.encode_item(item)
            yield exchange.encode_end()
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    async def _send(self, stream: HttpStream) -> None:
        """Sends the pieces as they come, and closes their iterator whatever happens."""
        try:
            await self._pump(stream)
        except asyncio.CancelledError:
            self._break(stream, self.reason or Cancelled("the stream was cancelled"))
        except PenstockError as error:
            self._break(stream, error)
        except Exception:
            log.exception("stream failed", extra={"path": self.http.path})
            self._break(stream, Internal("internal error; the server's log has the traceback"))
        finally:
            close = getattr(stream.pieces, "aclose", None)
            if close is not None:
                try:
                    await close()
                except Exception:
                    log.exception("closing a stream failed", extra={"path": self.http.path})

    async def _pump(self, stream: HttpStream) -> None:
        """The first piece decides between an error's status and 200; each next one waits until the client takes it."""
        wire = self.wire
        first = await anext(stream.pieces, b"")
        await wire.writable(self)
        if self.http10 or wire.is_last(self):
            self.keep_alive = False
        more = self._headers(None) + render_headers((*stream.headers, *self.http.notes))
        head = wire.heads.stream(stream.content_type, None if self.keep_alive else False, more, chunked=not self.http10)
        self.started = True
        stream.writer = self._writer
        self.comments = stream.content_type.startswith("text/event-stream")
        wire.counters.responses[2] += 1
        wire.write(head + self._frame(first))
        await wire.writable(self)
        async for piece in stream.pieces:
            wire.write(self._frame(piece))
            await wire.writable(self)
        self._end(b"", 200)

    def _break(self, stream: HttpStream, error: PenstockError) -> None:
        """Ends a stream that did not finish: an ordinary error before the first piece, an error event after it."""
        if self.abandoned:
            return
        if not self.started:
            self.fail(error)
            return
        self.keep_alive = False
        try:
            self._end(stream.encode_error(error), http_status(error))
        except Exception:
            log.exception("encode_error failed", extra={"path": self.http.path})
            self.wire.cut()  # a body without its end: the one honest thing left to say

    def _end(self, data: bytes, status: int) -> None:
        self._note(status)  # how the stream ended: its head said 200
        self.output = self._frame(data) + (b"" if self.http10 else LAST_CHUNK)
        self.wire.answered(self)

    def _note(self, status: int) -> None:
        witness, target, http = self.wire.options.witness, self.target, self.http
        if witness is None:
            return
        route = target.route if isinstance(target, Found) else None
        if self.sight is None and self.admitted:
            return
        if self.sight is None and route is not None and not isinstance(route, CallRoute):
            traced = partial(take_http_trace, headers=http.headers) if _TRACEPARENT in http.headers else None
            self.sight = witness.see_refused(http.match.get("model", ""), traced, http.received)
        witness.http(http, "" if route is None else route.pattern, status, self.sight)

    def _writer(self) -> Callable[[bytes], None] | None:
        return self._write if self.output is None and self.wire.takes(self) else None

    def _write(self, data: bytes) -> None:
        self.wire.write(self._frame(data))

    def _frame(self, data: bytes) -> bytes:
        return data if self.http10 else chunk(data)

    def _headers(self, timings: Timings | None) -> bytes:
        headers = b""
        sent = self.http.headers.get(_REQUEST_ID)
        if sent is not None:
            headers = render_headers((("X-Request-Id", request_id(sent)),))
        if timings is not None:
            headers += b"Server-Timing: %b\r\n" % server_timing(timings)
        return headers


def request_id(sent: bytes) -> str:
    """The client's own request id if it is short and plain, else a new one."""
    text = sent.decode("latin-1")
    if 0 < len(text) <= _REQUEST_ID_CHARACTERS and text.isascii() and text.isprintable():
        return text
    return uuid.uuid4().hex


def server_timing(timings: Timings) -> bytes:
    """A Server-Timing value in milliseconds: waiting, joining and crossing to the worker and back, the model itself."""
    submitted, dispatched = timings.submitted, timings.dispatched
    queue_s = dispatched - submitted if dispatched > submitted > 0.0 else 0.0
    # Half the time of an f-string, and this may be in every answer.
    text = b"queue;dur=%.3f, batch;dur=%.3f, compute;dur=%.3f" % (
        queue_s * 1e3,
        (timings.compute_input_s + timings.compute_output_s) * 1e3,
        timings.compute_infer_s * 1e3,
    )
    return text + _steps(timings.steps) if timings.steps else text


def _steps(steps: tuple[tuple[str, float], ...]) -> bytes:
    """The times of a graph's steps: names are made what a token may hold (RFC 9110, 5.6.2)."""
    return b"".join(
        b", step-%b;dur=%.3f" % (_NO_TOKEN.sub("_", name).encode(), seconds * 1e3)
        for name, seconds in steps[:_MOST_STEPS]
    )
