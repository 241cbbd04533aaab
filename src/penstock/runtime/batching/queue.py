"""The bounded queue before one servable: requests wait in lanes of their like, in order of arrival.

A lane holds what may be joined: same names, datatypes, row shapes and parameters, same priority level. The lane with
the best level goes first; within a level, the one whose head has waited longest. Requests whose caller has left, or
whose deadline has passed, are dropped on the way and never reach a worker. No clock here: `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

from penstock.core.messages import Request
from penstock.runtime.batching import policy
from penstock.runtime.batching.policy import BatchLimits

if TYPE_CHECKING:
    import asyncio

# V2's level 0 is "the default"; levels count upwards from the most urgent, so the default comes after every asked one.
_DEFAULT_LEVEL = 1 << 31


class Waiting:
    """One request in the queue. `future` is its caller's; `alone` keeps it out of joined batches; a `piece` is a part
    of a larger request, which is counted as a whole elsewhere. `returns` is how often it came back from a worker
    without an answer."""

    __slots__ = ("alone", "future", "key", "piece", "request", "returns", "rows", "since", "stream")

    def __init__(
        self, request: Request, future: asyncio.Future[Any], rows: int, key: Hashable, since: float,
        alone: bool = False, stream: bool = False, piece: bool = False,
    ) -> None:  # fmt: skip
        self.request = request
        self.future = future
        self.rows = rows
        self.key = key
        self.since = since
        self.alone = alone
        self.stream = stream
        self.piece = piece
        self.returns = 0


class _Lane:
    __slots__ = ("items", "level", "rows")

    def __init__(self, level: int) -> None:
        self.items: deque[Waiting] = deque()
        self.level = level
        self.rows = 0


class Lanes:
    """All that waits for one servable. `size` counts requests, `rows` their rows (the abandoned included until the
    next sweep). `dropped` are the abandoned ones that were left out, until their reader empties it."""

    __slots__ = ("_lanes", "_urgent", "dropped", "rows", "size")

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane] = {}
        self.dropped: list[Waiting] = []
        self.size = 0
        self.rows = 0
        self._urgent: dict[int, int] = {}  # rows by level, of those that asked for one

    def rows_before(self, priority: int) -> int:
        """The rows that wait and would go before a newcomer of this priority."""
        if not priority:
            return self.rows
        return sum(rows for level, rows in self._urgent.items() if level <= priority)

    def push(self, waiting: Waiting, *, front: bool = False) -> None:
        """Adds a request; at the front of its lane when it is being retried."""
        level = waiting.request.priority or _DEFAULT_LEVEL
        lane_id = (level, id(waiting)) if waiting.alone else (level, waiting.key)
        lane = self._lanes.get(lane_id)
        if lane is None:
            lane = self._lanes[lane_id] = _Lane(level)
        if front:
            lane.items.appendleft(waiting)
        else:
            lane.items.append(waiting)
        lane.rows += waiting.rows
        self.rows += waiting.rows
        self.size += 1
        if level != _DEFAULT_LEVEL:
            self._urgent[level] = self._urgent.get(level, 0) + waiting.rows

    def take(self, now: float, free_workers: int, limits: BatchLimits) -> tuple[list[Waiting], str, list[Waiting]]:
        """The next batch for one free worker, why it is released (see `policy`), and those found expired on the way.

        An empty batch means: nothing waits, or all that waits should wait on (see `next_release`).
        """
        expired: list[Waiting] = []
        for lane_id, lane in self._ordered():
            first = lane.items[0]
            if first.alone or first.stream:
                reason = policy.SINGLE  # nothing may join it, so there is nothing to wait for
            else:
                reason = policy.release(lane.rows, now - first.since, limits)
            if not reason:
                continue
            batch = self._pop(lane, policy.share(lane.rows, free_workers, limits), limits.join, now, expired)
            if not lane.items:
                del self._lanes[lane_id]
            if batch:
                if batch[0].alone or batch[0].stream or not limits.join:
                    reason = policy.SINGLE
                elif reason == policy.FULL and sum(item.rows for item in batch) < limits.most_rows:
                    reason = policy.IDLE  # the even share was taken, not a full batch
                return batch, reason, expired
        return [], "", expired

    def next_release(self, limits: BatchLimits) -> float | None:
        """When the oldest waiting lane's delay is over; None when nothing waits."""
        heads = [lane.items[0].since for lane in self._lanes.values()]
        return min(heads) + limits.delay_s if heads else None

    def waited_s(self, now: float) -> float:
        """How long the request has waited that waits longest; 0 when none waits."""
        return max((now - lane.items[0].since for lane in self._lanes.values() if lane.items), default=0.0)

    def sweep(self, now: float) -> list[Waiting]:
        """Those whose deadline has passed, removed; those whose caller has left are removed silently."""
        expired: list[Waiting] = []
        for lane_id in list(self._lanes):
            lane = self._lanes[lane_id]
            if any(item.future.done() or item.request.deadline <= now for item in lane.items):
                kept: deque[Waiting] = deque()
                for item in lane.items:
                    if item.future.done():
                        self._forget(lane, item)
                        self.dropped.append(item)
                    elif item.request.deadline <= now:
                        self._forget(lane, item)
                        expired.append(item)
                    else:
                        kept.append(item)
                lane.items = kept
                if not kept:
                    del self._lanes[lane_id]
        return expired

    def cut(self, rows: int) -> list[Waiting]:
        """The last ones to come, the least urgent first, removed until no more than so many rows wait. No pieces: a
        missing one would fail the whole request, and waste what its other pieces have cost."""
        waiting = [(lane, item) for lane in self._lanes.values() for item in lane.items if not item.piece]
        waiting.sort(key=lambda pair: (pair[0].level, pair[1].since))
        cut: list[Waiting] = []
        while self.rows > rows and waiting:
            lane, item = waiting.pop()
            self._forget(lane, item)
            cut.append(item)
        gone = set(cut)
        for lane_id in list(self._lanes) if cut else ():
            lane = self._lanes[lane_id]
            lane.items = deque([item for item in lane.items if item not in gone])
            if not lane.items:
                del self._lanes[lane_id]
        return cut

    def clear(self) -> list[Waiting]:
        """Everything that waits, removed, for a queue that closes."""
        left = [item for lane in self._lanes.values() for item in lane.items]
        self._lanes.clear()
        self._urgent.clear()
        self.size = self.rows = 0
        return left

    def _ordered(self) -> Iterator[tuple[Hashable, _Lane]]:
        if len(self._lanes) <= 1:  # the usual case costs no sort
            yield from list(self._lanes.items())
            return
        # Nearly always the first one is taken: it is looked for alone, and the others are sorted when it is not.
        yield min(self._lanes.items(), key=_rank)
        yield from sorted(self._lanes.items(), key=_rank)[1:]

    def _pop(self, lane: _Lane, most_rows: int, join: bool, now: float, expired: list[Waiting]) -> list[Waiting]:
        batch: list[Waiting] = []
        rows = 0
        items = lane.items
        while items:
            item = items[0]
            if item.future.done() or item.request.deadline <= now:
                if item.future.done():
                    self.dropped.append(item)
                else:
                    expired.append(item)
            elif batch and rows + item.rows > most_rows:
                break
            else:
                batch.append(item)
                rows += item.rows
            items.popleft()
            self._forget(lane, item)
            if rows >= most_rows or item.stream or not join:
                break
        return batch

    def _forget(self, lane: _Lane, item: Waiting) -> None:
        lane.rows -= item.rows
        self.rows -= item.rows
        self.size -= 1
        if lane.level != _DEFAULT_LEVEL:
            self._urgent[lane.level] -= item.rows
            if not self._urgent[lane.level]:
                del self._urgent[lane.level]


def _rank(lane: tuple[Hashable, _Lane]) -> tuple[int, float]:
    """What the lanes are taken by: the best level, then the head that has waited longest."""
    return lane[1].level, lane[1].items[0].since
