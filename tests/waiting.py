"""Waiting for what comes true in other processes: each asks again and again, for as long as a busy machine may need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def until(claim: Callable[[], object], within_s: float = 20.0) -> None:
    """Returns once the claim holds; fails when it does not in time."""
    by = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < by, f"it did not come true within {within_s:g} s"
        time.sleep(0.01)


async def becomes(claim: Callable[[], object], within_s: float = 20.0) -> None:
    """The same on a loop, which goes on meanwhile."""
    by = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < by, f"it did not come true within {within_s:g} s"
        await asyncio.sleep(0.005)
