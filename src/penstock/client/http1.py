"""HTTP/1.1 from the client's side, without I/O: requests as bytes, answers read by generators.

A reading generator yields what it needs and is sent the bytes: an int is exactly so many, a `bytes` is everything up to
and with that end mark, `ANY` is whatever comes next (b"" at the end of the connection). Sockets and asyncio streams
then need one small driver each, and the parsing is written, and tested, once.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.client.options import Address
from penstock.core.errors import Internal, TooLarge

Buffer = bytes | bytearray | memoryview
Need = int | bytes
Reader = Generator[Need, bytes | bytearray, None]

ANY: Final = -1
MAX_HEAD_BYTES: Final = 64 << 10
# Below this, parts are joined: one system call and one packet for a small copy.
_JOIN_BYTES: Final = 128 << 10
_PIECE_BYTES: Final = 1 << 20


class ConnectionEnded(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's status and headers, names in lower case."""

    status: int
    headers: Mapping[str, str]
    keep_alive: bool
    length: int | None  # of the body in bytes; None when it is chunked or ends with the connection
    chunked: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray
    keep_alive: bool


def request(
    address: Address, method: str, path: str, headers: Mapping[str, str], body: Iterable[Buffer]
) -> list[Buffer]:
    """The bytes of a request, in as few buffers as is good for speed."""
    parts = list(body)
    size = sum(len(part) for part in parts)
    lines = [f"{method} {address.prefix}{path} HTTP/1.1", f"Host: {address.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method != "GET":
        lines.append(f"Content-Length: {size}")
    head = "\r\n".join((*lines, "", "")).encode("latin-1")
    if size <= _JOIN_BYTES:
        return [b"".join((head, *parts))]
    return [b"".join((head, parts[0])), *parts[1:]] if len(parts[0]) <= _JOIN_BYTES else [head, *parts]


def parse_head(data: bytes | bytearray, method: str) -> Head:
    """The head that `data` holds, its empty line included.

    Raises:
        Internal: it is not HTTP/1, or says two things about the body's length.
    """
    lines = bytes(data).decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise Internal(f"the server does not speak HTTP/1.1: it answered {lines[0][:80]!r}")
    status = int(code)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            if name == "content-length" and headers.get(name, value) != value:
                raise Internal("the server's answer has two lengths")
            headers[name] = value
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    keep_alive = "close" not in options and (version != "HTTP/1.0" or "keep-alive" in options)
    if method == "HEAD" or status in (204, 304) or status < 200:
        return Head(status, headers, keep_alive, 0, False)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Head(status, headers, keep_alive, None, True)
    text = headers.get("content-length")
    if text is None:
        return Head(status, headers, False, None, False)
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Internal(f"the server's answer has the length {text[:40]!r}")
    return Head(status, headers, keep_alive, int(text), False)


def read_head(method: str) -> Generator[Need, bytes | bytearray, Head]:
    """Reads the answer's head, past any interim ones."""
    while True:
        head = parse_head((yield b"\r\n\r\n"), method)
        if head.status >= 200:
            return head


def read_reply(method: str, limit: int) -> Generator[Need, bytes | bytearray, Reply]:
    """Reads a whole answer of at most `limit` bytes, before and after decompression.

    Raises:
        TooLarge: it is larger.
        Internal: it is not well-formed.
    """
    head = yield from read_head(method)
    return (yield from read_rest(head, limit))


def read_rest(head: Head, limit: int) -> Generator[Need, bytes | bytearray, Reply]:
    """Reads the body that belongs to `head`; see `read_reply`."""
    body: bytes | bytearray
    if head.length is not None:
        if head.length > limit:
            raise TooLarge(f"the answer has {head.length} bytes, this client takes {limit}")
        body = (yield head.length) if head.length else b""
    else:
        body = bytearray()
        pieces = read_pieces(head)
        try:
            need = next(pieces)
            while True:
                if isinstance(need, Piece):
                    body += need.data
                    if len(body) > limit:
                        raise TooLarge(f"the answer has more than the {limit} bytes that this client takes")
                    need = next(pieces)
                else:
                    need = pieces.send((yield need))
        except StopIteration:
            pass
    encoding = head.headers.get("content-encoding", "").lower()
    return Reply(head.status, head.headers, _decompress(body, encoding, limit), head.keep_alive)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a body, given out by a generator as it comes."""

    data: bytes | bytearray


def read_pieces(head: Head) -> Generator[Need | Piece, bytes | bytearray, None]:
    """Reads a body of any framing as it comes: yields needs, and `Piece`s (to which nothing is sent)."""
    if head.chunked:
        while size := _chunk_size((yield b"\r\n")):
            while size:
                data = yield min(size, _PIECE_BYTES)
                size -= len(data)
                yield Piece(data)
            if (yield 2) != b"\r\n":
                raise Internal("the server's answer has a chunk without an end")
        while (yield b"\r\n") != b"\r\n":
            pass  # trailers
    elif head.length is not None:
        left = head.length
        while left:
            data = yield min(left, _PIECE_BYTES)
            left -= len(data)
            yield Piece(data)
    else:
        while data := (yield ANY):
            yield Piece(data)


def _chunk_size(line: bytes | bytearray) -> int:
    text = bytes(line[:-2]).split(b";")[0].strip()
    if not text or len(text) > 15 or set(text) - set(b"0123456789abcdefABCDEF"):
        raise Internal(f"the server's answer has the chunk size {text[:20]!r}")
    return int(text, 16)


def _decompress(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "deflate"):
        raise Internal(f"the server's answer is encoded as {encoding[:40]!r}, which was not asked for")
    inflate = zlib.decompressobj(47)  # zlib's or gzip's header, whichever it is
    try:
        data = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Internal(f"the server's answer cannot be decompressed: {error}") from None
    if len(data) > limit:
        raise TooLarge(f"the answer has more than the {limit} bytes that this client takes")
    if not inflate.eof:
        raise Internal("the server's answer cannot be decompressed: it is cut off")
    return bytearray(data)
