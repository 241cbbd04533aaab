"""The head of a replica's answer: where its body ends, and what the caller gets of it. Pure.

Replicas are ours, but what answers at an address is believed only as far as its framing is plain: anything doubtful
ends the connection, and the caller gets an error.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.core.errors import Internal

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([\t -~\x80-\xff]*))?")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_KEPT_FOR: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,6})", re.IGNORECASE)  # RFC 2068, section 19.7.1.1
# Of one connection only, rendered here, or ours to say.
_DROPPED: Final = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"penstock-revision", b"penstock-decision",
    )
)  # fmt: skip
_KEPT = 512
_KEPT_BYTES = 2048
MAX_BYTES: Final = 64 << 10


class AnswerHead:
    """One answer's head. `start` is its status line and its headers for the caller, without framing and last line."""

    __slots__ = (
        "bodiless", "chunked", "content_type", "error", "idle_s", "informational", "json_bytes", "keep_alive", "length",
        "start", "status",
    )  # fmt: skip

    def __init__(self, status: int, start: bytes) -> None:
        self.status = status
        self.start = start
        self.informational = status < 200
        self.bodiless = status < 200 or status in (204, 304)
        self.length: int | None = None
        self.chunked = False
        self.keep_alive = True
        self.idle_s: float | None = None  # so long the replica says that it keeps the connection without a request
        self.error = b""  # Penstock-Error
        self.content_type = b""
        self.json_bytes: int | None = None  # V2's Inference-Header-Content-Length


class AnswerReader:
    """Reads heads, and keeps what it read of the last ones."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[bytes, AnswerHead] = {}

    def read(self, data: bytes) -> AnswerHead:
        """The head of exactly these bytes, which end with the first empty line in them.

        Raises:
            Internal: it is no head of HTTP/1.
        """
        head = self._kept.get(data)
        if head is None:
            head = _read(data)
            if len(data) <= _KEPT_BYTES:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                self._kept[data] = head
        return head


def _read(data: bytes) -> AnswerHead:
    first, *lines = data[:-4].split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise Internal("the replica's answer is malformed: no status line")
    status = int(match[2])
    fields = []
    connection = b""
    head = AnswerHead(status, b"")
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Internal("the replica's answer is malformed: a header is none")
        name, value = field[1].lower(), field[2]
        if name == b"content-length":
            if head.length is not None or not value.isdigit() or len(value) > 15:
                raise Internal("the replica's answer is malformed: Content-Length is no number")
            head.length = int(value)
        elif name == b"transfer-encoding":
            if head.chunked or value.lower() != b"chunked":
                raise Internal("the replica's answer is malformed: a transfer coding other than chunked")
            head.chunked = True
        elif name == b"connection":
            connection += b"," + value.lower()
        elif name == b"keep-alive":
            said = _KEPT_FOR.search(value)
            head.idle_s = None if said is None else float(said[1])
        elif name == b"penstock-error":
            head.error = value
        elif name == b"content-type":
            head.content_type = value
        elif name == b"inference-header-content-length" and value.isdigit() and len(value) <= 15:
            head.json_bytes = int(value)
        if name not in _DROPPED:
            fields.append((name, line))
    if head.chunked and head.length is not None:
        raise Internal("the replica's answer is malformed: both Content-Length and Transfer-Encoding")
    named = {one.strip() for one in connection.split(b",")}
    head.keep_alive = b"close" not in named and match[1] == b"1"
    reason = match[3] or b""
    kept = b"".join(b"%b\r\n" % line for name, line in fields if name not in named)
    head.start = b"HTTP/1.1 %d %b\r\n%b" % (status, reason, kept)
    return head
