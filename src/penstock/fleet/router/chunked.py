"""Chunked bodies, taken apart strictly: both ends of a connection must agree where a message ends. Pure.

Source: RFC 9112, section 7.1. What other parsers forgive is refused: bare line feeds, signs and spaces around sizes,
sizes over 15 digits, data that does not end with CRLF. Extensions and trailers are dropped, within bounds.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.core.errors import InvalidInput

_SIZE, _DATA, _END, _TRAILER, _DONE = range(5)
_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
_TRAILING: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n")
_LINE_BYTES = 4096
_FRAMING_BYTES = 64 << 10  # what a body may carry beside its data …
_FRAMING_PER_CHUNK = 16  # … and for each chunk

LAST: Final = b"0\r\n\r\n"


class Chunked:
    """Reads one chunked body, in whatever pieces it comes."""

    __slots__ = ("_framing", "_left", "_line", "_state")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._framing = _FRAMING_BYTES

    @property
    def done(self) -> bool:
        """Whether the last byte of the body, with its trailers, was read."""
        return self._state == _DONE

    def feed(self, data: bytes) -> tuple[list[bytes], int]:
        """The pieces of the body in `data`, and how many bytes of `data` belong to it: all, unless it is `done`.

        Raises:
            InvalidInput: it is not a chunked body, or one that is mostly framing.
        """
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and self._state != _DONE:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _END
                continue
            end = data.find(b"\n", at, at + _LINE_BYTES)
            stop = size if end < 0 else end + 1
            self._line += data[at:stop]
            at = stop
            if len(self._line) > _LINE_BYTES:
                raise InvalidInput("malformed chunked body: a line is too long")
            if end >= 0:
                line, self._line = self._line, b""
                self._framing -= len(line)
                if self._framing < 0:
                    raise InvalidInput("the chunked body is mostly framing")
                self._take(line)
        return pieces, at

    def _take(self, line: bytes) -> None:
        if self._state == _SIZE:
            match = _LINE.fullmatch(line)
            if match is None:
                raise InvalidInput("malformed chunked body: no chunk size where one is due")
            self._left = int(match[1], 16)
            self._framing += _FRAMING_PER_CHUNK
            self._state = _DATA if self._left else _TRAILER
        elif self._state == _END:
            if line != b"\r\n":
                raise InvalidInput("malformed chunked body: a chunk is longer than its size")
            self._state = _SIZE
        elif line == b"\r\n":
            self._state = _DONE
        elif _TRAILING.fullmatch(line) is None:
            raise InvalidInput("malformed chunked body: its trailers are no headers")


def chunk(pieces: list[bytes]) -> bytes:
    """The pieces as one chunk; nothing for nothing, because an empty chunk would end the body."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
