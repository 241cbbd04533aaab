"""Bytes to a running server exactly as they are given, without a client's good manners, and what the server becomes."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from open_doors import tree


def exchange(
    url: str, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None and method != "GET":
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
        else:
            connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def connect(address: str, receive_bytes: int | None = None) -> socket.socket:
    """A connection to `host:port` or a base URL. A small receive buffer makes a reader that soon takes nothing."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    sock = socket.socket()
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(60)
    sock.connect((str(parts.hostname), int(parts.port or 0)))
    return sock


def said(address: str, data: bytes, within_s: float = 20.0) -> bytes:
    """Everything the server answers to `data` until it closes, which it must do in time."""
    with connect(address) as sock:
        sock.settimeout(within_s)
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        parts = []
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(1 << 16):
                parts.append(piece)
        return b"".join(parts)


def memory_bytes(pid: int) -> int:
    """What a server's processes hold together: private pages, and their share of shared ones."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0]) << 10
    return total


def peak_bytes(pid: int) -> int:
    """The most that each of a server's processes has held since it started, or since `begin_peak`, added up."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/status").read_text()
            total += int(text.partition("VmHWM:")[2].split()[0]) << 10
    return total


def begin_peak(pid: int) -> None:
    """Forgets the most that was held, of each process."""
    for each in tree(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")


def until(claim: Callable[[], bool], within_s: float, what: str) -> None:
    """Returns as soon as `claim` holds, and fails when it does not in time."""
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
