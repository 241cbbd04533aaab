"""The front's end of one stream: items that came, and the iterator that hands them out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

import numpy as np

from penstock.core.errors import PenstockError, WorkerLost
from penstock.core.servable import PIECE, Tensors
from penstock.runtime.workers import frame


class Inbox:
    """What a worker has sent of one stream. Bounded by the worker's window: it waits for `took` to be called."""

    def __init__(self, took: Callable[[int], None], abandon: Callable[[bool], None]) -> None:
        """`abandon` is called when no more is wanted: with True when the reader left, with False at the deadline."""
        self.ended = False  # nothing more comes
        self.count = 0  # what the piece that was handed out last counts for
        self.lost: Callable[[WorkerLost], None] = _nothing
        self._took = took
        self._abandon = abandon
        self._items: deque[Tensors | tuple[int, bytes]] = deque()
        self._begun: list[bytes] = []  # of a piece that comes in several entries
        self._push: Callable[[int, bytes], bool] | None = None
        self._error: PenstockError | None = None
        self._taken = 0
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, item: Tensors) -> None:
        self._items.append(item)
        self._wake()

    def pour(self, count: int, piece: bytes) -> None:
        """Takes one entry of a `frame.Pieces`."""
        if count == frame.MORE:
            self._begun.append(piece)
            return
        if self._begun:
            piece, self._begun = b"".join((*self._begun, piece)), []
        push, waiter = self._push, self._waiter
        if push is not None and waiter is not None and not waiter.done() and not self._items and push(count, piece):
            self._taken += 1
            self._took(self._taken)
            return
        self._items.append((count, piece))
        self._wake()

    def push_to(self, push: Callable[[int, bytes], bool]) -> None:
        """From now on pieces go to `push` while the reader waits; see `core.messages.Request.push`."""
        self._push = push

    def finish(self, error: PenstockError | None) -> None:
        """No item comes after this; `error` is raised to the reader once it has taken the items before it."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._wake()

    async def next(self) -> Tensors:
        while not self._items:
            if self.ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._items.popleft()
        self._taken += 1
        if not self.ended:
            self._took(self._taken)
        if not isinstance(item, tuple):
            self.count = 0
            return item
        self.count, piece = item
        return {PIECE: np.frombuffer(piece, np.uint8)}

    def expire(self, error: PenstockError) -> None:
        """The stream ends here, whether or not its reader asks for more: items not yet taken are forgotten, the worker
        is told to stop, the reader gets `error` when it comes."""
        if not self.ended:
            self._items.clear()
            self.finish(error)
            self._abandon(False)

    def drop(self) -> None:
        """The reader left: the worker is told, what came is forgotten."""
        self._items.clear()
        if not self.ended:
            self.finish(None)
            self._abandon(True)
        self._error = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream(AsyncIterator[Tensors]):
    """What a reader iterates. Closing it, or letting go of it, stops the model within one item."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Tensors:
        return await self._inbox.next()

    @property
    def count(self) -> int:
        """What the last answer counts for; see `core.servable.Outlet`."""
        return self._inbox.count

    def on_lost(self, callback: Callable[[WorkerLost], None]) -> None:
        """Has `callback` called if the process dies before the model has stopped, though the reader may have left by
        then. Not if it was killed because the model went on without a reader."""
        self._inbox.lost = callback

    def push_to(self, push: Callable[[int, bytes], bool]) -> None:
        """See `core.messages.Request.push`."""
        self._inbox.push_to(push)

    def expire(self, error: PenstockError) -> None:
        """Stops the model within one item although the reader may be busy elsewhere, who gets `error` next."""
        self._inbox.expire(error)

    async def aclose(self) -> None:
        self._inbox.drop()

    def __del__(self) -> None:
        self._inbox.drop()


def _nothing(error: WorkerLost) -> None:
    return
