"""Carries what a router saw into the store: counts, decisions, rewards and comparisons.

Theory of operation. The loop lays things into an inbox under a lock that is held for some appends only. A thread takes
the inbox over every `FLUSH_S`, at once when a reward waits, and writes it in one transaction; whatever came meanwhile
goes together into the next one. So a database that is slow costs time on the thread, never on the loop, and larger
batches make up for it.

When a write fails, or nobody knows whether it succeeded, the same batch is sent again under the same number until the
store has it: it counts once. Meanwhile the inbox is bounded, by kind: counts and comparisons are sums and do not grow;
decisions beyond `MOST_DECISIONS` are dropped and counted; rewards beyond `MOST_REWARDS` are refused, and those that
waited for `REWARD_S` are not acknowledged, so that their callers send them again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from penstock.core.errors import Internal, InvalidInput, Overloaded, PenstockError
from penstock.fleet.routes import Endpoint
from penstock.fleet.state import ArmStatistics
from penstock.fleet.store.batch import Arm, Batch, Decision, Outcome, Reward
from penstock.fleet.store.decisions import Decisions, total

FLUSH_S = 0.25
MOST_DECISIONS = 20_000
MOST_REWARDS = 10_000
REWARD_S = 5.0
_BACKOFF_S = (0.1, 0.25, 0.5, 1.0, 2.0)

# What may be otherwise in a moment: locked, full, away, a standby that is read-only. InvalidInput: nobody answered
# where it was to be opened.
_PASSING = (OperationalError, InterfaceError, InternalError, PoolTimeout, InvalidInput)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Figures:
    """What a recorder did since its start; `unwritten_s` is how old the oldest thing is that is not written."""

    batches: int = 0
    decisions: int = 0
    dropped_decisions: int = 0
    rewards: int = 0
    refused_rewards: int = 0
    failures: int = 0  # of writes; each was tried again
    lost_batches: int = 0  # what the store can never take; a defect
    unwritten_s: float = 0.0
    problem: str = ""  # of the last write, empty when it succeeded


class _Asked:
    """Rewards of one call, and who waits for them."""

    __slots__ = ("future", "loop", "rewards")

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards = tuple(rewards)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()

    def settle(self, result: list[Outcome] | PenstockError) -> None:
        """Called on the thread; a loop that is gone has nobody waiting."""

        def tell() -> None:
            if self.future.done():
                return
            if isinstance(result, PenstockError):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(tell)


@dataclass(slots=True)
class _Inbox:
    decisions: list[Decision] = field(default_factory=list)
    asked: list[_Asked] = field(default_factory=list)
    rewards: int = 0
    statistics: dict[Arm, ArmStatistics] = field(default_factory=dict)
    since: float | None = None  # monotonic: when the first thing came


class Recorder:
    """The router's `hooks.Recorder`, and where decisions and rewards go. `start` begins its thread, `close` ends it."""

    def __init__(
        self, opened: Callable[[], Decisions], writer: str, *, comparisons: Callable[[], Mapping[Arm, str]] = dict,
        clock: Callable[[], float] = time.time, flush_s: float = FLUSH_S, reward_s: float = REWARD_S,
    ) -> None:  # fmt: skip
        """`opened` opens the store, on the thread, and may fail until the database is there. `writer` is a name that no
        other recorder has or had. `comparisons` hands over what a mirror has summed since the last call; it is called
        on the thread too."""
        self._opened = opened
        self._store: Decisions | None = None
        self._writer = writer
        self._comparisons = comparisons
        self._clock = clock
        self._flush_s = flush_s
        self._reward_s = reward_s
        self._lock = threading.Lock()
        self._inbox = _Inbox()
        self._wake = threading.Event()
        self._stopping = False
        self._gave_up = False  # the last batch was not written
        self._sequence = 0
        self._writing_since: float | None = None
        self._figures = Figures()
        self._thread = threading.Thread(target=self._run, name="penstock-recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Writes what is left, for at most `timeout_s`, and says whether all was written."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self._gave_up

    def count(self, endpoint: Endpoint, revision: int, more: ArmStatistics) -> None:
        """As `hooks.Recorder.count`."""
        arm = (endpoint.name, endpoint.experiment, revision)
        with self._lock:
            inbox = self._begun()
            known = inbox.statistics.get(arm)
            inbox.statistics[arm] = more if known is None else total(known, more)

    def decided(self, decision: Decision) -> None:
        """Takes a decision into the log, or drops it while the log cannot be written."""
        with self._lock:
            inbox = self._begun()
            if len(inbox.decisions) < MOST_DECISIONS:
                inbox.decisions.append(decision)
            else:
                self._figures.dropped_decisions += 1

    async def reward(self, rewards: Sequence[Reward]) -> list[Outcome]:
        """The outcome of each reward, once they are written.

        Raises:
            Overloaded: they are not acknowledged, because the store does not take them now. They may count all the
                same; sending them again does no harm.
        """
        if not rewards:
            return []
        asked = _Asked(rewards)
        with self._lock:
            inbox = self._begun()
            if self._stopping or inbox.rewards + len(rewards) > MOST_REWARDS:
                self._figures.refused_rewards += len(rewards)
                raise Overloaded("too many rewards wait for the store; send them again", retry_after_s=1.0)
            inbox.asked.append(asked)
            inbox.rewards += len(rewards)
        self._wake.set()
        try:
            async with asyncio.timeout(self._reward_s):
                return await asked.future
        except TimeoutError:
            with self._lock:
                self._figures.refused_rewards += len(rewards)
                if asked in self._inbox.asked:  # not under way yet: it never will be
                    self._inbox.asked.remove(asked)
                    self._inbox.rewards -= len(rewards)
            raise Overloaded(
                f"the store did not take the reward within {self._reward_s:g} s; send it again: it counts once",
                retry_after_s=1.0,
            ) from None

    def figures(self) -> Figures:
        """A copy of the figures, for metrics."""
        with self._lock:
            oldest = [one for one in (self._writing_since, self._inbox.since) if one is not None]
            age = time.monotonic() - min(oldest) if oldest else 0.0
            return replace(self._figures, unwritten_s=age)

    def _begun(self) -> _Inbox:
        if self._inbox.since is None:
            self._inbox.since = time.monotonic()
        return self._inbox

    def _run(self) -> None:
        while True:
            self._wake.wait(self._flush_s)
            self._wake.clear()
            stopping = self._stopping  # read before the inbox: what came before is written
            with self._lock:
                inbox, self._inbox = self._inbox, _Inbox()
                self._writing_since = inbox.since
            try:
                self._write(inbox)
            except _Closing as closing:
                self._gave_up = True
                _log.error("recorder_closed_with_unwritten", extra={"problem": str(closing)})
                for asked in inbox.asked:
                    asked.settle(Overloaded("the store does not take rewards now; send it again", retry_after_s=1.0))
            except Exception as error:  # the outermost loop of this thread: it must not end
                _log.exception("recorder_failed")
                for asked in inbox.asked:
                    asked.settle(Internal(f"the reward was not written: {type(error).__name__}"))
            self._writing_since = None
            if stopping:
                if self._store is not None:
                    self._store.close()
                return

    def _write(self, inbox: _Inbox) -> None:
        rewards = tuple(reward for asked in inbox.asked for reward in asked.rewards)
        comparisons = self._comparisons()
        if not (inbox.decisions or rewards or inbox.statistics or comparisons):
            return
        batch = Batch(self._writer, 0, self._clock(), tuple(inbox.decisions), rewards, inbox.statistics, comparisons)
        whole = self._numbered(batch)
        outcomes: list[Outcome] | None
        try:
            outcomes = self._record(whole)
        except _Refused:
            outcomes = self._in_parts(whole)
        for asked in inbox.asked:
            size = len(asked.rewards)
            asked.settle(Internal("the store cannot take this reward") if outcomes is None else outcomes[:size])
            outcomes = outcomes and outcomes[size:]
        with self._lock:
            self._figures.batches += 1
            self._figures.decisions += len(inbox.decisions)
            self._figures.rewards += len(rewards)

    def _in_parts(self, whole: Batch) -> list[Outcome] | None:
        """Writes what can be written of a batch that the store does not take whole: one kind must not take the others
        with it. Gives the outcomes of its rewards, None where these were the ones."""
        empty = Batch(self._writer, 0, whole.at)
        outcomes: list[Outcome] | None = []
        for part in (
            replace(empty, rewards=whole.rewards), replace(empty, statistics=whole.statistics),
            replace(empty, decisions=whole.decisions), replace(empty, comparisons=whole.comparisons),
        ):  # fmt: skip
            try:
                written = self._record(self._numbered(part))
            except _Refused as refused:
                written = None
                with self._lock:
                    self._figures.lost_batches += 1
                _log.error("recorder_lost_batch", extra={"problem": str(refused)})
            if part.rewards:
                outcomes = written
        return outcomes

    def _numbered(self, batch: Batch) -> Batch:
        self._sequence += 1
        return replace(batch, sequence=self._sequence)

    def _record(self, batch: Batch) -> list[Outcome]:
        """Writes a batch, for as long as it takes.

        Raises:
            _Refused: it never will.
            _Closing: the recorder is closing, and this was the last try.
        """
        tries = 0
        while True:
            try:
                if self._store is None:
                    self._store = self._opened()
                outcomes = self._store.record(batch)
                self._figures.problem = ""
                return outcomes
            except _PASSING as error:
                problem = str(error).split("\n", 1)[0][:300]
            except Exception as error:
                raise _Refused(f"{type(error).__name__}: {str(error)[:300]}") from error
            with self._lock:
                self._figures.failures += 1
                self._figures.problem = problem
            if tries in (0, 10, 100):
                _log.warning("recorder_waits", extra={"problem": problem, "tries": tries + 1})
            if self._stopping and tries:
                raise _Closing(problem)
            # Not `_wake`: rewards that come in would make it spin.
            time.sleep(_BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)])
            tries += 1


class _Refused(Exception):
    """The store cannot take a batch."""


class _Closing(Exception):
    """There is no time left to try again."""
