"""Ends a worker whose llama.cpp stands still while it should generate, so that the pool replaces it.

llama.cpp tells of every token, and of a long prompt's progress. A grammar that can be read in very many ways makes it
look for minutes for the next token, for all sequences at once, and a caller who leaves does not stop that. Its callers
then get an error, and what ends workers again and again is refused by the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

STALLED = 70  # the exit status: EX_SOFTWARE of sysexits.h
_LOOK_S = 1.0


def _exit() -> None:
    os._exit(STALLED)


class Watch:
    """One engine's. `moved` is to be called with every message; inside `running` somebody waits for one."""

    def __init__(self, most_s: float, end: Callable[[], None] = _exit) -> None:
        self._most_s = most_s
        self._end = end
        self._moved_at = 0.0
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None

    def moved(self) -> None:
        self._moved_at = time.monotonic()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if not self._running:
            self.moved()
        self._running += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        try:
            yield
        finally:
            self._running -= 1

    def _look(self) -> None:
        self._timer = None
        if not self._running:
            return
        still_s = time.monotonic() - self._moved_at
        if still_s > self._most_s:
            print(
                f"llama.cpp said nothing for {still_s:.0f} s while {self._running} sequences ran; this worker ends",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            self._end()
            return
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
