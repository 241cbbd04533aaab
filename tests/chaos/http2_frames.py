"""HTTP/2 frames by hand, for what no client library sends. Source: RFC 9113 and, for header blocks, RFC 7541."""

from __future__ import annotations

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame; `length` is what it claims to hold, when that is a lie."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


SETTINGS_FRAME = frame(SETTINGS, 0, 0)
BEGIN = PREFACE + SETTINGS_FRAME


def literal(name: bytes, value: bytes) -> bytes:
    """A header that is not put into the other side's table."""
    return b"\x00" + _text(name) + _text(value)


def request(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call."""
    start = b"\x83\x86\x04" + _text(path) + b"\x01" + _text(b"test")  # POST, http, :path, :authority
    return (
        start
        + literal(b"content-type", b"application/grpc")
        + literal(b"te", b"trailers")
        + b"".join(literal(name, value) for name, value in more)
    )


def message(data: bytes, length: int | None = None, compressed: int = 0) -> bytes:
    """A gRPC message; `length` is what it claims to hold."""
    return bytes([compressed]) + (len(data) if length is None else length).to_bytes(4, "big") + data


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))  # CANCEL


def _text(text: bytes) -> bytes:
    """A string without Huffman coding, its length in HPACK's 7-bit integers."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    out, size = bytearray([127]), size - 127
    while size >= 128:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + text
