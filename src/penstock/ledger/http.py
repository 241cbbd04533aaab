"""Sends requests over HTTP/1.1 when they are due, over as many kept connections as that takes.

A connection carries one request at a time. One that was idle for long is not used again: a server may be about to close
it, and a request that meets the close would be cut by nobody's fault.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import httptools

from penstock.client.http1 import request
from penstock.client.options import IDLE_S, parse_url
from penstock.core.errors import PenstockError
from penstock.ledger import book
from penstock.ledger.book import Entry, Outcome, Target
from penstock.ledger.payloads import Payloads

_BY_STATUS: Final[dict[int, Outcome]] = {
    429: book.QUOTA,
    503: book.UNAVAILABLE,
    504: book.DEADLINE,
}
_CONNECT_S: Final = 5.0
# Source: RFC 9110, 15.5.9. A server may say so on a kept connection that it closes, without having been asked.
_IDLE_TOO_LONG: Final = 408


def outcome_of_status(status: int) -> Outcome:
    """What an HTTP status says of a request."""
    if status == 200:
        return book.OK
    return _BY_STATUS.get(status, book.INVALID if 400 <= status < 500 else book.ERROR)


class HttpSender:
    """Requests to one model of one server. Lives on one loop; `close` when done."""

    def __init__(
        self, target: Target, payloads: Payloads, clock: Callable[[], float], patience_s: float, connections: int
    ) -> None:
        self._address = parse_url(target.url)
        self._ssl = target.tls.context() if self._address.secure else None
        self._headers = {"Content-Type": "application/json"}
        if target.api_key:
            self._headers["Authorization"] = f"Bearer {target.api_key}"
        self._payloads, self._clock, self._patience_s, self._limit = payloads, clock, patience_s, connections
        self._idle: deque[_Connection] = deque()  # the one used last is at the right, and used next
        self._open: set[_Connection] = set()
        self._busy: dict[int, _Connection] = {}  # by the number of the request on it
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiting: deque[Entry] = deque()
        self._done: dict[int, Callable[[Entry], None]] = {}

    def send(self, entry: Entry, done: Callable[[Entry], None]) -> None:
        """Sends at once where a connection can be had. `done` is called once, when the request has its outcome."""
        entry.tried = self._clock()
        self._done[entry.number] = done
        loop = asyncio.get_running_loop()
        now = self._clock()
        loop.call_later(entry.scheduled + entry.deadline_s + self._patience_s - now, self._give_up, entry)
        if entry.leave_after_s is not None:
            loop.call_later(max(0.0, entry.scheduled + entry.leave_after_s - now), self._leave, entry)
        self._place(entry)

    def close(self) -> None:
        """Closes all connections. Requests without an outcome keep none."""
        for task in self._connecting:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    def _place(self, entry: Entry) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh(self._clock()):
                self._write(connection, entry)
                return
            connection.abort()
        if len(self._open) + len(self._connecting) >= self._limit:
            self._waiting.append(entry)
            return
        task = asyncio.get_running_loop().create_task(self._connect(entry))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, entry: Entry) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._address.host, self._address.port, ssl=self._ssl
                )
        except (OSError, TimeoutError) as error:
            self.ended(entry, book.REFUSED, "", str(error) or type(error).__name__)
            self._next()
            return
        if entry.outcome is None:
            self._write(connection, entry)
        else:  # its caller left meanwhile
            self.idle(connection)

    def _write(self, connection: _Connection, entry: Entry) -> None:
        now = self._clock()
        body = self._payloads[entry.payload].json_body(entry.id, entry.scheduled + entry.deadline_s - now)
        entry.sent = now
        self._busy[entry.number] = connection
        connection.send(
            entry,
            b"".join(
                bytes(part) for part in request(self._address, "POST", self._payloads.path, self._headers, [body])
            ),
        )

    def _give_up(self, entry: Entry) -> None:
        if entry.outcome is None:
            self.ended(entry, book.UNSENT if entry.sent is None else book.LOST)
            self._hang_up(entry)

    def _leave(self, entry: Entry) -> None:
        if entry.outcome is None:
            self.ended(entry, book.LEFT)
            self._hang_up(entry)

    def _hang_up(self, entry: Entry) -> None:
        connection = self._busy.pop(entry.number, None)
        if connection is not None:
            connection.abort()

    # What connections report.

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next()

    def idle(self, connection: _Connection) -> None:
        connection.idle_since = self._clock()
        self._idle.append(connection)
        self._next()

    def _next(self) -> None:
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.outcome is None:
                self._place(entry)
                return

    def answered(self, entry: Entry, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Takes a whole answer."""
        outcome = outcome_of_status(status)
        if outcome != book.OK:
            self.ended(
                entry, outcome, str(status), headers.get("penstock-error", "") or body[:200].decode(errors="replace")
            )
            return
        now = self._clock()
        try:
            request_id, entry.version, outputs = self._payloads.read_json(body)
        except PenstockError as error:
            self.ended(entry, book.ERROR, str(status), f"the answer cannot be read: {error}", now)
            return
        if request_id and request_id != entry.id:
            entry.crossed = f"it carries the id {request_id}"
        else:
            entry.crossed = self._payloads[entry.payload].wrong(outputs)
        self.ended(entry, book.OK, str(status), "", now)

    def answered_again(self, entry: Entry, status: int) -> None:
        """Takes a second answer to a request."""
        if status != _IDLE_TOO_LONG:
            entry.end(self._clock(), outcome_of_status(status), str(status))

    def ended(self, entry: Entry, outcome: Outcome, code: str = "", detail: str = "", now: float | None = None) -> None:
        """Takes an outcome."""
        if outcome not in (book.LEFT, book.LOST):  # those still have a connection to hang up
            self._busy.pop(entry.number, None)
        entry.end(self._clock() if now is None else now, outcome, code, detail)
        done = self._done.pop(entry.number, None)
        if done is not None:
            done(entry)


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request on it."""

    def __init__(self, sender: HttpSender) -> None:
        self._sender = sender
        self._transport: asyncio.Transport | None = None
        self.entry: Entry | None = None
        self._last: Entry | None = None  # the one that was answered last
        self._headers_complete = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclasses of asyncio's
        self._sender.opened(self)

    def fresh(self, now: float) -> bool:
        """Whether a request may be written to it."""
        return self._transport is not None and not self._transport.is_closing() and now - self.idle_since < IDLE_S / 10

    def send(self, entry: Entry, data: bytes) -> None:
        self.entry = entry
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._headers_complete = False
        self._body: list[bytes] = []
        if self._transport is None or self._transport.is_closing():
            self._lost("it was closed before the request was written")
        else:
            self._transport.write(data)

    def abort(self) -> None:
        self.entry = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.entry is None and self._last is None:  # nothing was asked for
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            entry, self.entry = self.entry, None
            if entry is not None:
                self._sender.ended(entry, book.ERROR, "", f"not HTTP: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost(str(exc or "the server closed the connection"))
        self._sender.closed(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_headers_complete(self) -> None:
        self._headers_complete = True

    def on_message_complete(self) -> None:
        entry, self.entry = self.entry, None
        if entry is None:
            if self._last is not None:
                self._sender.answered_again(self._last, self._parser.get_status_code())
            self.abort()
            return
        self._last = entry
        keep = self._parser.should_keep_alive()
        self._sender.answered(entry, self._parser.get_status_code(), self._headers, b"".join(self._body))
        if keep and self._transport is not None and not self._transport.is_closing():
            self._sender.idle(self)
        elif self._transport is not None:
            self._transport.close()

    def _lost(self, why: str) -> None:
        entry, self.entry = self.entry, None
        if entry is None:
            return
        if self._headers_complete and not self._headers.keys() & {"content-length", "transfer-encoding"}:
            # Source: RFC 9112, 6.3: without either, the end of the connection is the end of the answer.
            self._sender.answered(entry, self._parser.get_status_code(), self._headers, b"".join(self._body))
        else:
            self._sender.ended(entry, book.CUT, "", why)
