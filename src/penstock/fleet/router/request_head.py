"""The head of a request: read once, strictly, and written anew for the replica.

A proxy is where disagreements about framing become request smuggling. So one parser (llhttp, strict) reads a head, more
is refused than it refuses, and nothing of how the head was written reaches the replica: its request line, its headers
and its framing are rendered here from what was understood. Source: RFC 9112, sections 2.2, 3.2, 5, 6 and 11.2.

Clients repeat themselves. A head is a pure function of its bytes, so what was read of the last ones is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import httptools

# Of one connection only (RFC 9110, section 7.6.1), or rendered here: framing, the deadline, what was expected.
DROPPED: Final = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"proxy-authenticate", b"proxy-authorization", b"content-length", b"expect", b"penstock-timeout-ms",
        b"http2-settings",
    )
)  # fmt: skip
_LINE: Final = re.compile(rb"[A-Z-]{1,32} [!-~]+ HTTP/\d\.\d")
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_~!$&'()*+,;=%:\[\]]*")
# Without a fragment, which some parsers cut off and others take for a part of the path.
_TARGET: Final = re.compile(rb"/[!\"$-~]*|\*")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[!\"$-~]*)?(\?[!\"$-~]*)?", re.IGNORECASE)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LOOKED_AT: Final = DROPPED | {b"host"}
_NONE: Final[frozenset[bytes]] = frozenset()
_LONGEST_LENGTH = 15  # digits
_KEPT_BYTES = 4096  # of one head
_KEPT = 512  # heads
_MOST_TIMEOUT_MS = 7 * 24 * 3600e3


Fields = Sequence[tuple[bytes, bytes]]


class HeadRefused(Exception):
    """The head breaks a rule or a limit: answered with `status`, and nothing more is read from that connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head:
    """One request's head. Immutable, but for `plan`, where the front keeps what follows from it.

    `fields` are all headers in their order, names in lower case. `length` is None without a Content-Length.
    """

    __slots__ = (
        "chunked", "expects", "fields", "host", "http10", "keep_alive", "length", "method", "path", "plan", "target",
        "timeout_s",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, fields: tuple[tuple[bytes, bytes], ...], http10: bool, keep_alive: bool
    ) -> None:
        self.method = method
        self.target = target
        self.path = target.partition(b"?")[0].decode("ascii")
        self.fields = fields
        self.http10 = http10
        self.keep_alive = keep_alive
        self.length: int | None = None
        self.chunked = False
        self.expects = False
        self.host = b""
        self.timeout_s: float | None = None
        self.plan: object = None

    def get(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        for known, value in self.fields:
            if known == name:
                return value
        return None

    def headers(self) -> dict[str, str]:
        """All headers as text, repeated ones joined."""
        found: dict[str, str] = {}
        for name, value in self.fields:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found

    def onward(self, without: frozenset[bytes] = frozenset()) -> bytes:
        """Request line and headers for a replica, up to the framing. `without` are further names to leave out."""
        dropped = _LOOKED_AT | without | _named_by_connection(self.fields)
        lines = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (self.method, self.target, self.host)]
        lines += [b"%b: %b\r\n" % field for field in self.fields if field[0] not in dropped]
        return b"".join(lines)


class HeadReader:
    """Reads heads, and keeps what it read of the last ones. `max_bytes` bounds a head with its last line."""

    __slots__ = ("_kept", "max_bytes", "max_headers")

    def __init__(self, max_bytes: int, max_headers: int) -> None:
        self._kept: dict[bytes, Head] = {}
        self.max_bytes = max_bytes
        self.max_headers = max_headers

    def clear(self) -> None:
        """Forgets what was kept: the plans of its heads hold on to a table that is over."""
        self._kept.clear()

    def read(self, data: bytes) -> Head:
        """The head of exactly these bytes, which end with the first empty line in them.

        Raises:
            HeadRefused.
        """
        head = self._kept.get(data)
        if head is None:
            head = self._read(data)
            if len(data) <= _KEPT_BYTES:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                self._kept[data] = head
        return head

    def _read(self, data: bytes) -> Head:
        if len(data) > self.max_bytes:
            raise HeadRefused(431, f"the request's head is over {self.max_bytes} bytes")
        ends = data.count(b"\r\n")
        if data.count(b"\n") != ends or data.count(b"\r") != ends:
            raise HeadRefused(400, "malformed HTTP request: a line does not end with CRLF")
        if _CONTROL.search(data) is not None:
            raise HeadRefused(400, "malformed HTTP request: a header has a control character")
        if b"\r\n " in data or b"\r\n\t" in data:
            raise HeadRefused(400, "malformed HTTP request: a header is folded")
        if _LINE.fullmatch(data, 0, data.index(b"\r")) is None:
            raise HeadRefused(400, "malformed HTTP request: its first line is no request line")
        seen = _Seen()
        parser = httptools.HttpRequestParser(seen)
        try:
            parser.feed_data(data[:-1])
            early = seen.complete
            parser.feed_data(data[-1:])
        except httptools.HttpParserUpgrade:
            early = False
        except httptools.HttpParserError as error:
            raise HeadRefused(400, f"malformed HTTP request: {error}") from None
        if early or not seen.complete:
            raise HeadRefused(400, "malformed HTTP request: its head does not end where it should")
        if len(seen.fields) > self.max_headers:
            raise HeadRefused(431, f"the request has over {self.max_headers} headers")
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise HeadRefused(505, "this server speaks HTTP/1.1")
        method = parser.get_method()
        if method == b"CONNECT":
            raise HeadRefused(405, "CONNECT is for proxies of another kind")
        fields = tuple([(name.lower(), value) for name, value in seen.fields])
        target, authority = _target(seen.target)
        head = Head(method, target, fields, version == "1.0", parser.should_keep_alive())
        special = [field for field in fields if field[0] in _LOOKED_AT]
        _frame(head, special)
        _expect(head, special)
        _address(head, special, authority)
        return head


class _Seen:
    """What the parser's callbacks tell."""

    __slots__ = ("complete", "fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _target(written: bytes) -> tuple[bytes, bytes | None]:
    """The target in origin form, and the authority of one in absolute form."""
    if _TARGET.fullmatch(written):
        return written, None
    absolute = _ABSOLUTE.fullmatch(written)
    if absolute is None:
        raise HeadRefused(400, "malformed HTTP request: its target is no path")
    return (absolute[2] or b"/") + (absolute[3] or b""), absolute[1]


def _frame(head: Head, special: Fields) -> None:
    lengths = [value for name, value in special if name == b"content-length"]
    codings = [value for name, value in special if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise HeadRefused(400, "malformed HTTP request: both Content-Length and Transfer-Encoding")
        if head.http10:
            raise HeadRefused(400, "malformed HTTP request: HTTP/1.0 has no transfer codings")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HeadRefused(501, "the only transfer coding here is chunked")
        head.chunked = True
    if lengths:
        if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _LONGEST_LENGTH:
            raise HeadRefused(400, "malformed HTTP request: Content-Length is no number")
        head.length = int(lengths[0])


def _expect(head: Head, special: Fields) -> None:
    for name, value in special:
        if name == b"expect":
            if value.lower() != b"100-continue":
                raise HeadRefused(417, "the only expectation here is 100-continue")
            head.expects = not head.http10
        elif name == b"penstock-timeout-ms" and head.timeout_s is None:
            head.timeout_s = _seconds(value)


def _seconds(text: bytes) -> float | None:
    """None when it says nothing that could be meant."""
    try:
        milliseconds = float(text)
    except ValueError:
        return None
    return min(milliseconds, _MOST_TIMEOUT_MS) / 1e3 if 0.0 < milliseconds < math.inf else None


def _address(head: Head, special: Fields, authority: bytes | None) -> None:
    hosts = [value for name, value in special if name == b"host"]
    if len(hosts) > 1 or (not hosts and not head.http10):
        raise HeadRefused(400, "malformed HTTP request: exactly one Host header is needed")
    head.host = authority if authority is not None else hosts[0] if hosts else b""
    if not _HOST.fullmatch(head.host):
        raise HeadRefused(400, "malformed HTTP request: Host is no address")


def _named_by_connection(fields: Fields) -> frozenset[bytes]:
    named = [value for name, value in fields if name == b"connection"]
    return frozenset([one.strip().lower() for value in named for one in value.split(b",")]) if named else _NONE
