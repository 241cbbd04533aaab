"""Bytes of one connection into whole HTTP requests, within limits. No I/O.

Theory of operation
-------------------
A state machine of four states, driven by llhttp's callbacks:

    START ──first byte──▶ HEAD ──blank line──▶ BODY ──last byte──▶ START          (and CLOSED, from anywhere)

httptools knows no limits, so every byte is counted here before it is kept: request line, headers and trailers against
`max_header_bytes`, the body against `max_body_bytes` (when its length is announced, before any of it is read). The key
and the route are looked at as soon as the head is whole. What is refused gets its answer, and no further byte is looked
at: CLOSED; only a short body of a refused request is read and dropped, so that the connection can go on.

A body of announced length above `_DIRECT_BYTES` is received into one buffer of that size, past the parser, which would
copy each piece once more. The buffer's pages become real only as bytes arrive, so an announcement costs nothing.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Final, Protocol

import httptools
import numpy as np

from penstock.core.errors import InvalidInput, Unauthenticated
from penstock.protocols import Buffer, CallRoute, HttpRequest, HttpResponse
from penstock.runtime.listeners.heads import plain_error
from penstock.runtime.listeners.router import Found
from penstock.runtime.listeners.site import Site

log = logging.getLogger("penstock.http")

START: Final = 0
HEAD: Final = 1
BODY: Final = 2
CLOSED: Final = 3

_DIRECT_BYTES = 64 << 10
_DROPPED_BYTES = 64 << 10  # largest body of a refused request that is read and dropped to keep the connection
_FRAMING_BYTES = 64 << 10  # what a chunked body may carry beside its data (extensions are legal, and unused) …
_FRAMING_PER_PIECE = 16  # … and for each chunk
TIMEOUT: Final = b"penstock-timeout-ms"  # the header with a request's deadline, from its first byte
_CRASHED = "internal error; the server's log has the traceback"


def timeout_of(text: bytes) -> float | None:
    """The seconds that the header says; None when it says nothing that could be meant."""
    try:
        milliseconds = float(text)
    except ValueError:
        return None
    return milliseconds / 1000.0 if 0.0 < milliseconds < math.inf else None


class Sink(Protocol):
    """Where the requests go: the connection."""

    def request(self, http: HttpRequest, target: Found | HttpResponse, keep_alive: bool, http10: bool) -> None:
        """A whole request, and its route or the answer it gets at once."""

    def refused(self, response: HttpResponse) -> None:
        """The last thing to say; the rest of what the client sends is not read."""

    def say_continue(self) -> None:
        """The client waits with its body for "100 Continue"."""


class _Nobody:
    """The sink of a closed reader."""

    def request(self, http: HttpRequest, target: Found | HttpResponse, keep_alive: bool, http10: bool) -> None: ...

    def refused(self, response: HttpResponse) -> None: ...

    def say_continue(self) -> None: ...


class Refusal(Exception):
    """Ends the reading: the request breaks a limit or a rule. `reason` is a label of the refusals' metric."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class Reader:
    """The reading half of a connection. `state` and `since` (the site's clock) are read by its timeouts."""

    __slots__ = (
        "_began", "_began_at", "_body", "_body_bytes", "_caller", "_chunked", "_counted", "_direct_left", "_dropped",
        "_found", "_head_bytes", "_headers", "_keep_alive", "_length", "_method", "_options", "_parser", "_pieces",
        "_sink", "_site", "_target", "_unheld", "_upgrade", "_version", "awaits_continue", "since", "state",
        "untouched",
    )  # fmt: skip

    def __init__(self, site: Site, sink: Sink) -> None:
        self._site = site
        self._options = site.options
        self._sink: Sink = sink
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.state = HEAD  # the first request's head is awaited, within its timeout
        self.since = site.now
        self.untouched = True  # nothing was ever received
        self._began = False
        self._began_at = 0.0
        self._caller = ""
        self._reset()

    def _reset(self) -> None:
        """Forgets the message that was read."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._unheld = 0  # trailers and repeated headers
        self._counted = 0  # bytes given to the parser since the message's first read
        self._found: Found | HttpResponse | None = None
        self._body: Buffer = b""
        self._body_bytes = 0
        self._length = 0
        self._chunked = False
        self._pieces = 0
        self._dropped = False
        self._direct_left = 0
        self._upgrade = False
        self.awaits_continue = False

    def feed(self, data: bytes) -> None:
        """Reads on. Never raises; the sink's methods are called from inside."""
        if self.state == CLOSED:
            return
        self.untouched = False
        try:
            self._feed(data)
        except Refusal as refusal:
            self.refuse(refusal.status, refusal.reason, refusal.message)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, Refusal):
                self.refuse(cause.status, cause.reason, cause.message)
            else:
                log.error("reading failed", exc_info=cause or error)
                self.refuse(500, "internal", _CRASHED)
        except httptools.HttpParserError as error:
            self.refuse(400, "malformed", f"malformed HTTP request: {error}")
        except Exception:
            log.exception("reading failed")
            self.refuse(500, "internal", _CRASHED)

    def refuse(self, status: int, reason: str, message: str) -> None:
        """Stops reading and answers; once. After the last request of a connection nothing is refused any more."""
        if self.state != CLOSED:
            self.state = CLOSED
            self._site.counters.refuse(reason)
            self._sink.refused(plain_error(status, message))
            self._reset()

    def late(self, now: float) -> bool:
        """Whether the deadline in the head of the request passed while its body is on its way."""
        text = self._headers.get(TIMEOUT)
        if text is None or self.state != BODY:
            return False
        timeout_s = timeout_of(text)
        return timeout_s is not None and self._began_at + timeout_s < now

    def close(self) -> None:
        """Stops reading and lets go of what was read, of the parser and of the sink (which hold each other)."""
        self.state = CLOSED
        self._parser = None
        self._sink = _Nobody()
        self._reset()

    # --- the parser's callbacks; an exception of theirs ends the reading ------------------------------------------

    def on_message_begin(self) -> None:
        if self.state < BODY:
            self.state = HEAD
            self.since = self._site.now
            self._began = True
            self._began_at = time.monotonic()

    def on_url(self, target: bytes) -> None:
        self._target += target
        self._head_bytes += len(target)
        if self._head_bytes > self._options.max_header_bytes:
            raise self._head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        headers, options = self._headers, self._options
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > options.max_header_bytes or len(headers) + self._unheld >= options.max_headers:
            raise self._head_too_large()
        if self.state != HEAD:  # a trailer: counted and dropped
            self._unheld += 1
            return
        name = name.lower()
        if name in headers:
            self._unheld += 1
            if name == b"host":
                raise Refusal(400, "malformed", "more than one Host header")
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        if self.state != HEAD:
            return
        parser, headers = self._parser, self._headers
        assert parser is not None
        version = self._version = parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise Refusal(505, "malformed", "this server speaks HTTP/1.1")
        if version == "1.1" and b"host" not in headers:
            raise Refusal(400, "malformed", "no Host header")
        self._keep_alive = parser.should_keep_alive()
        method = self._method = parser.get_method()
        if method == b"CONNECT":
            raise Refusal(405, "method", "CONNECT is for proxies")
        self._upgrade = b"upgrade" in headers and parser.should_upgrade()
        length = headers.get(b"content-length")
        if length is not None:
            self._length = int(length)
        elif b"transfer-encoding" in headers:
            if headers[b"transfer-encoding"].lower() != b"chunked":
                raise Refusal(501, "malformed", "the only transfer coding here is chunked")
            if version == "1.0":
                raise Refusal(400, "malformed", "HTTP/1.0 has no transfer codings")
            self._chunked = True
        self._found = self._find(method)
        if b"expect" in headers and headers[b"expect"].lower() != b"100-continue":
            raise Refusal(417, "malformed", "the only expectation here is 100-continue")
        self.state = BODY
        if self._length or self._chunked:
            self._expect_body(version)

    def on_body(self, data: bytes) -> None:
        if self.state != BODY:
            return
        start, body = self._body_bytes, self._body
        self._body_bytes = end = start + len(data)
        if self._chunked:
            self._pieces += 1
            if end > self._options.max_body_bytes:
                raise self._body_too_large()
        if self._dropped:
            return
        if isinstance(body, memoryview):
            body[start:end] = data
        elif not start:
            self._body = data
        elif isinstance(body, bytearray):
            body += data
        else:
            self._body = body = bytearray(body)
            body += data

    def on_message_complete(self) -> None:
        if self.state == BODY and not self._upgrade:
            self._complete()

    # --------------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        rest: Buffer = data
        while rest and self.state != CLOSED:
            if self._direct_left:
                rest = self._take(rest)
                continue
            assert self._parser is not None
            self._began = False
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = memoryview(rest)[upgrade.args[0] :]
                self._ignore_upgrade()
                continue
            if self.state == HEAD or self.state == BODY:
                self._count(len(rest))
            return

    def _count(self, size: int) -> None:
        """After a read that left a message unfinished: counts what llhttp keeps or skips without telling."""
        if not self._began:
            self._counted += size
        if self.state == HEAD:
            if self._counted > self._options.max_header_bytes:
                raise self._head_too_large()
        elif self._chunked:
            if self._counted - self._body_bytes > _FRAMING_BYTES + _FRAMING_PER_PIECE * self._pieces:
                raise Refusal(400, "malformed", "the chunked body is mostly framing")
        elif isinstance(self._body, memoryview):
            self._direct_left = self._length - self._body_bytes

    def _take(self, data: Buffer) -> memoryview:
        """Moves the body's part of `data` into the body and returns the rest."""
        view, body = memoryview(data), self._body
        assert isinstance(body, memoryview)
        piece = view[: self._direct_left]
        end = self._body_bytes + len(piece)
        body[self._body_bytes : end] = piece
        self._body_bytes = end
        self._direct_left -= len(piece)
        if not self._direct_left:
            self._parser = httptools.HttpRequestParser(self)  # the old one still waits for the body
            self._complete()
        return view[len(piece) :]

    def _ignore_upgrade(self) -> None:
        """Reads a request that asked for another protocol (h2c, websocket) as the HTTP/1.1 request it also is.

        llhttp stops after such a head. A new parser is told how the body is framed and takes over from there.
        """
        if self.state != BODY:
            return
        self._upgrade = False
        self._parser = httptools.HttpRequestParser(self)
        framing = b"Transfer-Encoding: chunked" if self._chunked else b"Content-Length: %d" % self._length
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)

    def _find(self, method: bytes) -> Found | HttpResponse:
        """The route, or why there is none. Keys are checked for everything that is not marked public."""
        site, headers = self._site, self._headers
        try:
            found = site.router.find(method, self._target)
        except InvalidInput as error:
            raise Refusal(400, "malformed", error.message) from None
        caller = site.keys.caller(headers) if site.keys.required else ""
        self._caller = caller or ""
        if caller is None:
            public = isinstance(found, Found) and isinstance(found.route, CallRoute) and found.route.public
            if not public:
                site.counters.refuse("unauthenticated")
                return self._unauthenticated(found if isinstance(found, Found) else None)
        if isinstance(found, Found):
            return found
        allow = ("Allow", ", ".join(found.allowed))
        if found.allowed and method == b"OPTIONS":
            return HttpResponse(204, headers=(allow,))
        if found.allowed:
            site.counters.refuse("method")
            return plain_error(405, f"{found.path[:256]} answers {allow[1]}, not {method.decode()}", allow)
        site.counters.refuse("not_found")
        return plain_error(404, f"no such path: {found.path[:256]}")

    def _unauthenticated(self, found: Found | None) -> HttpResponse:
        error = Unauthenticated("this server asks for an API key: send 'Authorization: Bearer KEY'")
        challenge = ("WWW-Authenticate", "Bearer")
        if found is None:
            return plain_error(401, error.message, challenge)
        http = HttpRequest(self._method.decode(), found.path, self._headers, query=found.query, match=found.names)
        response = found.protocol.encode_error(error, http)
        response.headers += (challenge,)
        return response

    def _expect_body(self, version: str) -> None:
        """Decides about a body from what its head says about it."""
        self.since = self._site.now
        if self._length > self._options.max_body_bytes:
            raise self._body_too_large()
        waits = b"expect" in self._headers and version == "1.1"
        if isinstance(self._found, HttpResponse):
            if waits or self._chunked or self._length > _DROPPED_BYTES:
                answer = self._found
                self.state = CLOSED
                self._sink.refused(answer)
                self._reset()
                return
            self._dropped = True
        elif waits:
            self.awaits_continue = True
            self._sink.say_continue()
        if self._length > _DIRECT_BYTES and not self._dropped:
            self._body = np.empty(self._length, np.uint8).data

    def _complete(self) -> None:
        """Hands the whole request on."""
        found, body, method, keep_alive = self._found, self._body, self._method.decode(), self._keep_alive
        assert found is not None
        if isinstance(found, Found):
            http = HttpRequest(
                method, found.path, self._headers, body.toreadonly() if isinstance(body, memoryview) else body,
                found.query, found.names, time.monotonic(), self._options.limits, self._began_at, caller=self._caller,
            )  # fmt: skip
        else:
            http = HttpRequest(method, "", self._headers, received=time.monotonic())
        self._reset()
        self.state = START if keep_alive else CLOSED
        self._sink.request(http, found, keep_alive, self._version == "1.0")

    def _head_too_large(self) -> Refusal:
        options = self._options
        return Refusal(
            431, "head_too_large",
            f"the request's head is over {options.max_header_bytes} bytes or {options.max_headers} headers",
        )  # fmt: skip

    def _body_too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the request's body is over {self._options.max_body_bytes} bytes")
