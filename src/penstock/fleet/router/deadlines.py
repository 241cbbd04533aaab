"""Deadlines of many requests, kept in slots of `SLOT_S`: a request costs two operations on a set, and no timer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final, Protocol

log = logging.getLogger("penstock.router")

SLOT_S: Final = 0.01


class Expiring(Protocol):
    def expire(self) -> None:
        """The deadline has passed; never before, and at most two slots later on a loop that keeps up."""


class Deadlines:
    """Calls `expire` of what is added and not discarded by its deadline. The timer runs only while something waits."""

    __slots__ = ("_call_later", "_clock", "_next", "_running", "_slots")

    def __init__(self, clock: Callable[[], float], call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._clock = clock
        self._call_later = call_later
        self._slots: dict[int, set[Expiring]] = {}
        self._next = 0  # the first slot that was not looked at
        self._running = False

    def add(self, item: Expiring, deadline: float) -> int:
        """The slot of the item, for `discard`."""
        slot = math.ceil(deadline / SLOT_S)
        if slot < self._next and self._running:
            slot = self._next
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = {item}
        else:
            items.add(item)
        if not self._running:
            self._running = True
            self._next = min(slot, int(self._clock() / SLOT_S))
            self._call_later(SLOT_S, self._tick)
        return slot

    def discard(self, item: Expiring, slot: int) -> None:
        """The item is over."""
        items = self._slots.get(slot)
        if items is not None:
            items.discard(item)
            if not items:
                del self._slots[slot]

    def _tick(self) -> None:
        now = int(self._clock() / SLOT_S)
        while self._next <= now:
            items = self._slots.pop(self._next, None)
            self._next += 1
            for item in items or ():
                try:
                    item.expire()
                except Exception:
                    log.exception("expiring failed")
            if not self._slots:
                self._next = max(self._next, now + 1)
        if self._slots:
            self._call_later(SLOT_S, self._tick)
        else:
            self._running = False
