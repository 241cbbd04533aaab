"""Renders responses: status line, framing headers, body. The usual heads are kept ready for a second at a time."""

from __future__ import annotations

import http
import math
import time
from collections.abc import Sequence
from email.utils import formatdate

import orjson

from penstock.protocols import HttpResponse

Rendered = bytes | list[bytes | memoryview]

_JOINED_BYTES = 64 << 10  # a body up to this size is copied behind its head: one write is cheaper than two buffers
_KEPT = 256  # prefixes; a server answers with a few statuses and content types
_CONNECTION = {None: b"", False: b"Connection: close\r\n", True: b"Connection: keep-alive\r\n"}
_NO_CONTROLS = dict.fromkeys((*range(32), 127), " ")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Heads:
    """Response heads of one listener."""

    __slots__ = ("_kept", "_second", "_server")

    def __init__(self, server_name: str) -> None:
        self._server = server_name.translate(_NO_CONTROLS).encode("latin-1", "replace")
        self._kept: dict[tuple[int, str, bool | None], bytes] = {}
        self._second = 0

    def tick(self) -> None:
        """Drops the kept heads when their Date is over; to be called at least once a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._kept.clear()

    def render(
        self,
        response: HttpResponse,
        connection: bool | None = None,
        more: bytes = b"",
        *,
        head_only: bool = False,
    ) -> Rendered:
        """The bytes of `response`, in one piece when the body is small.

        `connection` is what the Connection header says: nothing, keep-alive (True, for HTTP/1.0) or close (False).
        `more` are header lines that are rendered already (`render_headers`).
        `head_only` leaves the body out and keeps its length, as HEAD wants it.
        """
        status, body = response.status, response.body
        key = (status, response.content_type, connection)
        prefix = self._kept.get(key) or self._prefix(key)
        if isinstance(body, bytes) and len(body) <= _JOINED_BYTES and not head_only:
            if response.headers or more or status in (204, 304):
                extra = render_headers(response.headers) + more if response.headers else more
                if status in (204, 304):
                    return b"%b%b\r\n" % (prefix, extra)
                return b"%bContent-Length: %d\r\n%b\r\n%b" % (prefix, len(body), extra, body)
            return b"%bContent-Length: %d\r\n\r\n%b" % (prefix, len(body), body)
        parts = [body] if isinstance(body, (bytes, bytearray, memoryview)) else list(body)
        views = [part if isinstance(part, bytes) else memoryview(part).cast("B") for part in parts]
        extra = render_headers(response.headers) + more
        size = sum(map(len, views))
        head = b"%bContent-Length: %d\r\n%b\r\n" % (prefix, size, extra)
        if head_only:
            return head
        if size <= _JOINED_BYTES:
            return b"".join((head, *views))
        return [head, *views]

    def stream(self, content_type: str, connection: bool | None, more: bytes, chunked: bool) -> bytes:
        """The head of a body without known length: chunked, or (for HTTP/1.0) until the connection closes."""
        framing = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        prefix = self._prefix((200, content_type, connection))
        return b"%bCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n%b%b\r\n" % (
            prefix,
            framing,
            more,
        )

    def _prefix(self, key: tuple[int, str, bool | None]) -> bytes:
        status, content_type, connection = key
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        date = formatdate(self._second or time.time(), usegmt=True)
        lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {date}"]
        if content_type and status not in (204, 304):
            lines.append(f"Content-Type: {content_type.translate(_NO_CONTROLS)}")
        prefix = (
            "\r\n".join(lines).encode("latin-1", "replace")
            + b"\r\nServer: %b\r\n" % self._server
            + _CONNECTION[connection]
        )
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[key] = prefix
        return prefix


def render_headers(headers: Sequence[tuple[str, str]]) -> bytes:
    """Header lines. Control characters become spaces, so no value can end its line and begin another header."""
    return "".join([f"{_plain(name)}: {_plain(value)}\r\n" for name, value in headers]).encode("latin-1", "replace")


def _plain(text: str) -> str:
    # The check takes a tenth of the time that a translation does.
    return text if text.isascii() and text.isprintable() else text.translate(_NO_CONTROLS)


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body; nothing for nothing, because an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def retry_after(seconds: float | None) -> str:
    """The value of a Retry-After header: whole seconds, at least one."""
    return str(max(1, math.ceil(seconds or 0.0)))


def plain_error(status: int, message: str, *headers: tuple[str, str]) -> HttpResponse:
    """The listener's own errors, in the V2 protocol's form, for requests that belong to no protocol."""
    return HttpResponse(status, orjson.dumps({"error": message}), headers=headers)
