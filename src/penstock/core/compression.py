"""gzip and deflate of HTTP bodies, with a bound on what a small body may grow to."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from penstock.core.errors import InvalidInput, TooLarge, Unsupported

ACCEPTED = "gzip, deflate"

# zlib's `wbits`: 16 more is the gzip wrapper; HTTP's "deflate" is the zlib wrapper (RFC 9110, 8.4.1.2).
_GZIP, _ZLIB, _RAW = 31, 15, -15
_REFUSED = re.compile(r"q=0(\.0*)?")
# A body may be many gzip files, and zlib copies whatever of its input follows the end of one. So it is fed windows,
# each twice the one before: what is copied stays below a few times the body. bgzip makes a file of each 64 KiB, so the
# most files allowed are a gigabyte of those; each costs some microseconds, however little it holds.
_FIRST_WINDOW_BYTES = 16 << 10
_MOST_MEMBERS = 16_384
_LEVEL = 1  # three times as fast as the default 6, for answers about a tenth larger

# An answer is compressed when that is worth its time. A client that names one coding asks for it. One that lists
# several is a library that sends the same header with every request; then only answers count that a network feels.
_LEAST_ASKED_BYTES, _LEAST_LISTED_BYTES = 1 << 10, 64 << 10


def decompress(body: bytes | bytearray | memoryview, encoding: str, limit_bytes: int) -> bytes | bytearray | memoryview:
    """`body` without its Content-Encoding; the same object when there is none.

    Raises:
        TooLarge: it would be more than `limit_bytes`; no more than that is ever held.
        InvalidInput: the compressed data is broken or cut short.
        Unsupported: another coding than gzip, deflate and identity.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding in ("gzip", "x-gzip"):
        wrapper = _GZIP
    elif coding == "deflate":  # some senders leave the wrapper out; its two bytes tell
        wrapped = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        wrapper = _ZLIB if wrapped else _RAW
    else:
        raise Unsupported(f"Content-Encoding {encoding[:40]!r} is not supported; send one of {ACCEPTED} or none")
    parts: list[bytes] = []
    size, at, members, view = 0, 0, 0, memoryview(body)
    while at < len(view):
        members += 1
        if members > _MOST_MEMBERS:
            raise InvalidInput(f"the body is more than {_MOST_MEMBERS} {coding} files, the most allowed")
        inflater = zlib.decompressobj(wrapper)
        window_bytes = _FIRST_WINDOW_BYTES
        while at < len(view) and not inflater.eof:
            window = view[at : at + window_bytes]
            window_bytes *= 2
            try:
                part = inflater.decompress(window, limit_bytes - size + 1)
            except zlib.error as error:
                raise InvalidInput(f"the body is no valid {coding} data: {error}") from None
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                raise TooLarge(f"the body is more than {limit_bytes} bytes after decompression, the most allowed")
            at += len(window) - len(inflater.unused_data)
        if not inflater.eof:
            raise InvalidInput(f"the {coding} data of the body is cut short")
        if at < len(view) and wrapper != _GZIP:  # only gzip files may follow each other (RFC 1952, 2.2)
            raise InvalidInput(f"{len(view) - at} bytes follow the {coding} data of the body")
    return b"".join(parts) if len(parts) != 1 else parts[0]


def wished_encoding(accept_encoding: str, size_bytes: int) -> str:
    """`gzip`, `deflate` or "": how an answer of this size should be compressed for this Accept-Encoding."""
    if size_bytes < _LEAST_ASKED_BYTES:
        return ""
    codings: list[str] = []
    for item in accept_encoding.lower().split(","):
        name, _, quality = item.partition(";")
        if name.strip() and not _REFUSED.fullmatch(quality.replace(" ", "")):
            codings.append(name.strip())
    least = _LEAST_ASKED_BYTES if len(codings) == 1 else _LEAST_LISTED_BYTES
    if size_bytes < least:
        return ""
    return next((coding for coding in ("gzip", "deflate") if coding in codings), "")


def compress(parts: Sequence[bytes | memoryview], encoding: str) -> bytes:
    """The parts as one compressed body; `encoding` is what `wished_encoding` gave."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    out = [deflater.compress(part) for part in parts]
    out.append(deflater.flush())
    return b"".join(out)
