"""What all connections of one HTTP listener share."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from penstock.core.door import Door
from penstock.core.errors import PenstockError
from penstock.runtime.listeners.auth import ApiKeys
from penstock.runtime.listeners.heads import Heads
from penstock.runtime.listeners.http_options import HttpCounters, HttpOptions
from penstock.runtime.listeners.router import Router


class Open(Protocol):
    """An open connection, as its listener sees it."""

    def check(self, now: float) -> None:
        """Meets the timeouts; called every tick."""

    def wind_down(self) -> None:
        """Closes if nothing is going on."""

    def stop(self, reason: PenstockError) -> None:
        """Ends what is being answered with an error."""

    def cut(self) -> None:
        """Closes at once."""


class Site:
    """Shared by the connections of one listener; lives on the loop's thread."""

    __slots__ = (
        "closing",
        "connections",
        "counters",
        "door",
        "draining",
        "empty",
        "heads",
        "keys",
        "now",
        "options",
        "router",
        "serving",
    )

    def __init__(self, door: Door, router: Router, options: HttpOptions) -> None:
        self.door = door
        self.router = router
        self.options = options
        self.keys = ApiKeys(options.api_keys)
        self.heads = Heads(options.server_name)
        self.counters = HttpCounters()
        self.connections: set[Open] = set()
        self.empty = asyncio.Event()  # set when the last connection has gone
        self.serving = 0  # connections that were not refused
        self.draining = False  # answers say that they are the last of their connection
        self.closing = False  # idle connections close without a word
        self.now = time.monotonic()  # as of the last tick: good enough for timeouts, and free

    def tick(self) -> None:
        """Moves the clock on and lets each connection meet its timeouts."""
        self.now = now = time.monotonic()
        self.heads.tick()
        for connection in tuple(self.connections):
            connection.check(now)
