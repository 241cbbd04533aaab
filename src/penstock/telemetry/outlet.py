"""Writing lines to where nobody may read them: a pipe whose reader has stopped must not stop a server.

A write to a full pipe or to a terminal on hold waits for its reader, for ever if need be. So these are written without
waiting, by a description of the pipe that is this process's alone (others may share the inherited one, and its flags).
Files are written as ever: the kernel takes what they get.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TextIO

# How long a line waits for a reader who is merely slow. Once he has missed one, nobody waits until he reads again.
_PATIENCE_MS = 20


class Outlet:
    """Lines to a pipe, socket or terminal, each written whole or dropped."""

    def __init__(self, write: Callable[[bytes], int], fd: int, close: Callable[[], None]) -> None:
        """`write` writes to `fd` what it takes, and raises BlockingIOError when it takes nothing."""
        self.dropped = 0  # since the last line that was written
        self.close = close
        self._write = write
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self._torn = False  # the end of the line before was dropped

    def line(self, text: str) -> bool:
        """Whether the line was written. Raises: OSError when nobody can read any more."""
        data = memoryview((("\n" if self._torn else "") + text + "\n").encode(errors="backslashreplace"))
        begun = False
        while data:
            try:
                data = data[self._write(bytes(data)) :]
                begun = True
            except BlockingIOError:
                if self.dropped or not self._room.poll(_PATIENCE_MS):
                    self._torn = self._torn or begun
                    self.dropped += 1
                    return False
        self._torn = False
        return True


def outlet(stream: TextIO) -> Outlet | None:
    """The outlet of a stream; None for a file, a stream in memory, and where the system gives no second description."""
    try:
        fd = stream.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            sock = socket.socket(fileno=os.dup(fd))
            return Outlet(lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.fileno(), sock.close)
        if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and stream.isatty()):
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return Outlet(lambda data: os.write(own, data), own, lambda: os.close(own))
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    return None


def silence(stream: TextIO, fd: int) -> None:
    """Sends to nowhere what `stream` still holds and gets, after a write to it failed: the interpreter would fail once
    more over it when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
