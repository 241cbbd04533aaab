"""Room in an engine that keeps no queue of its own worth having: so many sequences, so many tokens of cache."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator


class Room:
    """Who comes first gets in first; one that needs much is not passed by later ones that need less."""

    def __init__(self, sequences: int, tokens: int) -> None:
        self._sequences, self._tokens = sequences, tokens
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()
        self.running = 0
        self.held = 0  # tokens

    @property
    def waiting(self) -> int:
        return sum(not future.done() for _, future in self._waiting)

    @contextlib.asynccontextmanager
    async def take(self, tokens: int) -> AsyncIterator[None]:
        """Waits until one more sequence of `tokens` fits, and holds its room. More than there is counts as all."""
        tokens = min(tokens, self._tokens)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, future))
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let in at the same moment
                self._leave(tokens)
            else:
                future.cancel()
                self._admit()  # who waited behind it may fit
            raise
        try:
            yield
        finally:
            self._leave(tokens)

    def _leave(self, tokens: int) -> None:
        self.running -= 1
        self.held -= tokens
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            tokens, future = self._waiting[0]
            if not future.done():
                if self.running >= self._sequences or self.held + tokens > self._tokens:
                    return
                self.running += 1
                self.held += tokens
                future.set_result(None)
            self._waiting.popleft()
