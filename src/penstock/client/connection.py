"""One connection over a socket, and the pool of those that can be used again."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from penstock.client.http1 import ANY, MAX_HEAD_BYTES, Buffer, ConnectionEnded, Need
from penstock.client.options import IDLE_S, KEPT_CONNECTIONS, Settings
from penstock.core.errors import DeadlineExceeded, Internal, NotReady

if TYPE_CHECKING:
    import ssl

_RECEIVE_BYTES = 64 << 10


def silent(descriptor: int) -> bool:
    """Whether nothing waits to be read from a socket. A server that speaks unasked has closed, or is confused."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not poll.poll(0)


class Connection:
    """A connected socket. Every wait ends at the `deadline` that its user sets (monotonic seconds)."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self.deadline = float("inf")
        self.idle_since = 0.0

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Sends all of it. Raises: OSError, DeadlineExceeded."""
        for buffer in buffers:
            self._limit()
            self._socket.sendall(buffer)

    def read(self, need: Need) -> bytes | bytearray:
        """What a reading generator of `http1` needs.

        Raises:
            ConnectionEnded: the connection ended before.
            DeadlineExceeded, OSError.
        """
        if isinstance(need, bytes):
            return self._read_until(need)
        if need == ANY:
            if not self._buffer:
                self._receive()
            data, self._buffer = self._buffer, bytearray()
            return data
        return self._read_exactly(need)

    def usable(self, now: float) -> bool:
        """Whether it can carry another request: not idle for long, not closed by the server, nothing left over."""
        if self._buffer or now - self.idle_since > IDLE_S:
            return False
        return silent(self._socket.fileno())

    def close(self) -> None:
        """Closes it; the server stops working on what was not answered."""
        self._socket.close()

    def _limit(self) -> None:
        if self.deadline == float("inf"):
            self._socket.settimeout(None)
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's time is over")
        self._socket.settimeout(left)

    def _receive(self) -> bool:
        self._limit()
        data = self._socket.recv(_RECEIVE_BYTES)
        self._buffer += data
        return bool(data)

    def _read_until(self, mark: bytes) -> bytearray:
        start = 0
        while (at := self._buffer.find(mark, start)) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Internal(f"the server's answer has a head of more than {MAX_HEAD_BYTES} bytes")
            start = max(0, len(self._buffer) - len(mark) + 1)
            if not self._receive():
                raise ConnectionEnded
        end = at + len(mark)
        data = self._buffer[:end]
        del self._buffer[:end]
        return data

    def _read_exactly(self, size: int) -> bytearray:
        if len(self._buffer) == size:
            data, self._buffer = self._buffer, bytearray()
            return data
        data = bytearray(size)
        at = min(size, len(self._buffer))
        data[:at] = self._buffer[:at]
        del self._buffer[:at]
        view = memoryview(data)
        while at < size:  # straight into the array's own memory: an answer of megabytes is not copied again
            self._limit()
            got = self._socket.recv_into(view[at:])
            if not got:
                raise ConnectionEnded
            at += got
        return data


class Pool:
    """Connections to one server. Safe for threads; a forked child starts with none of its parent's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: deque[Connection] = deque()
        self._tls: ssl.SSLContext | None = settings.tls.context() if settings.address.secure else None
        self._pid = os.getpid()

    def take(self) -> Connection | None:
        """A connection that was used before, or None."""
        if os.getpid() != self._pid:  # two processes on one connection would read each other's answers
            self._idle, self._pid = deque(), os.getpid()
        now = time.monotonic()
        while self._idle:
            try:
                connection = self._idle.pop()  # the last used: the others may grow old and be closed
            except IndexError:  # another thread was faster
                return None
            if connection.usable(now):
                return connection
            connection.close()
        return None

    def connect(self, deadline: float) -> Connection:
        """A new connection.

        Raises:
            NotReady: the server cannot be reached.
            DeadlineExceeded: not in time.
        """
        address = self._settings.address
        where = f"{address.host}:{address.port}"
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's time is over")
        try:
            sock = socket.create_connection((address.host, address.port), None if left == float("inf") else left)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_hostname=address.host)
            except BaseException:
                sock.close()
                raise
        except TimeoutError:
            raise DeadlineExceeded(f"no connection to {where} in time") from None
        except (OSError, UnicodeError) as error:
            raise NotReady(f"cannot connect to {where}: {error}") from error
        return Connection(sock)

    def give_back(self, connection: Connection) -> None:
        """Keeps a connection whose last answer was read to its end."""
        if len(self._idle) >= KEPT_CONNECTIONS:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return
