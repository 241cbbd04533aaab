"""Answers `POST …/feedback`: a reward is acknowledged once it is in the store, and needs no controller for that."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from penstock.core.errors import NotReady
from penstock.fleet.feedback import calls
from penstock.fleet.routes import Table
from penstock.fleet.store.batch import Outcome, Reward

# Checking a token takes 7 to 40 us: a thousand of them at once would hold up every request of this router.
_AT_ONCE_BYTES = 4096


class Writer(Protocol):
    """Where rewards go; `recorder.Recorder` is one."""

    async def reward(self, rewards: Sequence[Reward]) -> list[Outcome]: ...


class Feedback:
    """The router's `hooks.Feedback`."""

    def __init__(self, writer: Writer, *, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._clock = clock
        self._table: Table | None = None

    def table(self, table: Table) -> None:
        """Takes a new table: which deployments there are, and the secret of their tokens."""
        self._table = table

    async def feedback(self, name: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            NotReady: the router has no table yet.
            NotFound, TooLarge, InvalidInput: as `calls.read` says.
            AlreadyExists: the single form's decision has another reward.
            Overloaded: the store does not take it now; it may be sent again.
        """
        if self._table is None:
            raise NotReady("the router has no table yet", retry_after_s=1.0)
        read = functools.partial(self._read, name, body, self._table)
        call = read() if len(body) <= _AT_ONCE_BYTES else await asyncio.to_thread(read)
        return calls.answer(call, await self._writer.reward(call.rewards))

    def _read(self, name: str, body: bytes, table: Table) -> calls.Call:
        return calls.read(name, body, table, self._clock())
