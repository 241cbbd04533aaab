"""Deltas on their way out of a worker. Those that their reader has no room for, or does not need yet, become one: a
slow reader holds no engine back, and what waits for it is no more than what was generated."""

from __future__ import annotations

import asyncio
import time
from array import array
from typing import Final

from penstock.core.language import Delta, TokenLogprob
from penstock.core.servable import Outlet
from penstock.runtime.language import wire

_MOST_GATHERED: Final = 16  # tokens, however little time they took
# Tokens in one piece: the front reads each in one go, and with 20 alternatives a token costs it some 50 µs.
_MOST_JOINED: Final = 64


class Joiner:
    """Puts the deltas of one stream into an outlet."""

    def __init__(self, outlet: Outlet, gather_s: float = 0.0) -> None:
        """`gather_s`: see `core.language.Generation`."""
        self._outlet = outlet
        self._gather_s = gather_s
        self._sent_at = 0.0  # the first delta is not gathered
        self._first: Delta | None = None  # of those that wait
        self._last = Delta()
        self._ids = array("i")
        self._logprobs: list[TokenLogprob] = []
        self._events: list[Delta] = []  # that wait, of an engine that speaks of whole conversations
        self._roomy: asyncio.Event | None = None
        outlet.on_room = self._release

    def put(self, delta: Delta) -> None:
        """Takes the next delta."""
        if (
            self._first is None and not self._gather_s and not self._events and len(delta.token_ids) <= _MOST_JOINED
            and self._outlet.room()
        ):  # fmt: skip
            self._outlet.put(wire.piece(delta), len(delta.token_ids))
        elif delta.event:
            self._events.append(delta)
            self._release()
        else:
            self._keep(delta)
            if delta.finish_reason or not self._gather_s or self._gathered():
                self._release()

    def _keep(self, delta: Delta) -> None:
        if self._first is None:
            self._first = delta
        self._ids.extend(delta.token_ids)
        self._logprobs += delta.logprobs
        load = delta.load or self._last.load
        self._last = delta if load is delta.load else Delta(finish_reason=delta.finish_reason, load=load)

    def _gathered(self) -> bool:
        return len(self._ids) >= _MOST_GATHERED or time.monotonic() - self._sent_at >= self._gather_s

    def _release(self) -> None:
        """Sends what waits, as far as there is room."""
        while self._events and self._outlet.room():
            self._outlet.put(wire.piece(self._events.pop(0)), 0)
        while self._first is not None and not self._events and self._outlet.room():
            self._send()
        if self._roomy is not None:
            self._roomy.set()

    def _send(self) -> None:
        """Sends what waits, or as much of it as goes into one piece: what comes first with the first of it, what comes
        last with the last."""
        first, ids, logprobs = self._first, self._ids[:_MOST_JOINED], self._logprobs[:_MOST_JOINED]
        assert first is not None
        whole = len(ids) == len(self._ids)
        last = self._last if whole else Delta()
        piece = Delta(
            tuple(ids), tuple(logprobs), first.prompt_logprobs, last.finish_reason, first.cached_tokens, last.load
        )
        self._outlet.put(wire.piece(piece), len(ids))
        del self._ids[:_MOST_JOINED], self._logprobs[:_MOST_JOINED]
        if whole:
            self._first, self._last = None, Delta()
        else:
            self._first = Delta()
        if self._gather_s:
            self._sent_at = time.monotonic()

    def flush(self) -> None:
        """Sends all that waits, though there may be no room: nothing comes after it."""
        while self._events:
            self._outlet.put(wire.piece(self._events.pop(0)), 0)
        while self._first is not None:
            self._send()

    async def sent(self) -> None:
        """Returns when everything has been sent, which takes a reader that has room for it."""
        self._release()
        while self._events or self._first is not None:
            self._roomy = asyncio.Event()
            await self._roomy.wait()
