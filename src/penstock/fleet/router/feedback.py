"""Answers `POST …/feedback`: a reward is acknowledged once it is in the store, and needs no controller for that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from penstock.core.errors import NotReady
from penstock.fleet.feedback import calls
from penstock.fleet.routes import Table
from penstock.fleet.store.batch import Outcome, Reward


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
        call = calls.read(name, body, self._table, self._clock())
        return calls.answer(call, await self._writer.reward(call.rewards))
