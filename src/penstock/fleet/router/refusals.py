"""The router's own answers: errors in the form that runtimes give them, and small JSON documents."""

from __future__ import annotations

import http
from email.utils import formatdate

import orjson

from penstock.core.errors import PenstockError
from penstock.core.http_status import error_headers, http_status
from penstock.fleet.router.language_paths import error_body

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_CONTROLS = dict.fromkeys((*range(32), 127), " ")


def error_answer(error: PenstockError, path: str = "", *, more: bytes = b"") -> tuple[int, bytes]:
    """The status of an error, and the bytes of its answer in the shape that clients of `path` read. `more` are header
    lines that are rendered already."""
    return http_status(error), answer(
        http_status(error), error_body(path, error), headers=error_headers(error), more=more
    )


def plain_error(status: int, message: str, *, headers: tuple[tuple[str, str], ...] = (), more: bytes = b"") -> bytes:
    """An error that has a status of HTTP's own."""
    return answer(status, orjson.dumps({"error": message[:1600]}), headers=headers, more=more)


def answer(
    status: int, body: bytes, content_type: str = "application/json", *,
    headers: tuple[tuple[str, str], ...] = (), more: bytes = b"",
) -> bytes:  # fmt: skip
    """The bytes of an answer. `more` are header lines that are rendered already."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {formatdate(usegmt=True)}", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value.translate(_NO_CONTROLS)}" for name, value in headers]
    lines += ["Server: penstock", f"Content-Length: {len(body)}"]
    return b"%b\r\n%b\r\n%b" % ("\r\n".join(lines).encode("latin-1", "replace"), more, body)
