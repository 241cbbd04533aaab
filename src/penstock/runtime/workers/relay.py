"""Lines that a worker's user code prints, passed on to logging: bounded in length, in number and in memory."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping

log = logging.getLogger("penstock.worker")

_LINE_BYTES = 4096
_READ_BYTES = 1 << 16  # a pipe's usual capacity
_TAIL_LINES = 20


class Allowance:
    """So many a second, with a reserve for bursts; counts what it refused."""

    def __init__(self, per_s: float, burst: float) -> None:
        self.refused = 0
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._filled_at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True


class Relay:
    """Reads one pipe, which becomes non-blocking and is closed by `close`. `fields` go into every record's `extra`."""

    def __init__(self, fd: int, level: int, fields: Mapping[str, object]) -> None:
        self.fd = fd
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._level = level
        self._fields = dict(fields)
        self._part = b""
        self._cut = False  # the line under way is longer than we keep
        self._allowance = Allowance(per_s=100.0, burst=500.0)
        os.set_blocking(fd, False)

    def read(self) -> int:
        """Passes on at most one pipe's worth; the bytes read, 0 when there are none now, -1 when the pipe has ended."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            return -1
        if not data:
            return -1
        *lines, rest = data.split(b"\n")
        for line in lines:
            if not self._cut:
                self._emit(self._part + line)
            self._part, self._cut = b"", False
        if not self._cut:
            self._part += rest
            if len(self._part) > _LINE_BYTES:
                self._emit(self._part)
                self._part, self._cut = b"", True
        return len(data)

    def close(self) -> None:
        """Passes on what is left, as far as it is bounded, and closes the pipe."""
        if self.fd < 0:
            return
        for _ in range(16):  # something that the worker started may hold the pipe and write for ever
            if self.read() <= 0:
                break
        if self._part:
            self._emit(self._part)
        os.close(self.fd)
        self.fd = -1

    def _emit(self, line: bytes) -> None:
        text = line[:_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if not text:
            return
        self.tail.append(text)
        if not self._allowance.take():
            return
        if self._allowance.refused:
            log.warning("worker_lines_dropped", extra={**self._fields, "lines": self._allowance.refused})
            self._allowance.refused = 0
        log.log(self._level, "%s", text, extra=self._fields)
