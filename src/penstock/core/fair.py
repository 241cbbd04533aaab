"""A weighted fair queue of requests of many tenants. Pure: who owns it brings the time and the wake-ups.

Theory of operation. Start-time fair queueing: every tenant that waits has a start tag; the tenant with the least is
served next, and its tag then grows by cost / weight (a request costs 1 unless told otherwise). Virtual time is the tag
of what was served last. A tenant that begins to wait starts at virtual time, or where it had come to if that is later:
being idle earns nothing, and leaving for a moment gains nothing. While two tenants f and m both wait, what they were
served differs, each divided by its weight, by at most cost_f/weight_f + cost_m/weight_m of their largest requests,
however fast or unsteadily replicas take requests. So every tenant gets on, whatever the others send.
Source: Goyal, Vin, Cheng: "Start-time Fair Queueing", IEEE/ACM Transactions on Networking 5(5), 1997, theorem 1.

Tags belong to tenants, not to requests: what is cancelled, expired or pushed out costs its tenant nothing.

The queue is bounded. When it is full, the tenant that holds most for its weight gives up its newest request, so that a
flood cannot keep others out of the queue either.
Source: Suter, Lakshman, Stiliadis, Choudhury: "Design considerations for supporting TCP with per-flow queueing",
INFOCOM 1998 (longest queue drop).

All of it is O(log n), amortised: heaps hold entries that are out of date, which are skipped when they come up and
cleared away when they are the most.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item")
Entry = TypeVar("Entry")

_FEW = 64  # entries that are out of date and not worth clearing away
_LEAST_WEIGHT = 1e-6


@dataclass(slots=True, eq=False)
class Ticket(Generic[Item]):
    """One request. `waiting` is false once it left the queue, in whichever way."""

    item: Item
    tenant: str
    deadline: float
    waiting: bool = True
    cost: float = 1.0


@dataclass(slots=True, eq=False)
class _Line(Generic[Item]):
    """The requests of one tenant, oldest first. Some tickets may have left already; `count` did not."""

    tenant: str
    weight: float
    start: float  # the tag
    tickets: deque[Ticket[Item]] = field(default_factory=deque)
    count: int = 0
    queued: bool = False  # it has its one entry in `_ready`
    bid: float = 0.0  # of its one valid entry in `_longest`; never less than count / weight


class FairQueue(Generic[Item]):
    """At most `most` requests. Each leaves exactly once: by `take`, `cancel` or `expire`, or pushed out by `put`."""

    __slots__ = (
        "_count",
        "_deadlines",
        "_lapsed",
        "_lines",
        "_longest",
        "_most",
        "_ready",
        "_resting",
        "_serial",
        "_time",
    )

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._time = 0.0  # virtual
        self._serial = 0  # ranks entries that are equal otherwise: first come, first served
        self._lines: dict[str, _Line[Item]] = {}
        self._ready: list[tuple[float, int, _Line[Item]]] = []  # by tag
        self._resting: list[tuple[float, int, _Line[Item]]] = []  # lines without requests, ahead of virtual time
        self._longest: list[tuple[float, int, _Line[Item]]] = []  # by -(count / weight)
        self._deadlines: list[tuple[float, int, Ticket[Item]]] = []
        self._lapsed: list[Ticket[Item]] = []  # found by `take`, for `expire` to hand out

    def __len__(self) -> int:
        return self._count

    def put(
        self, tenant: str, weight: float, item: Item, deadline: float, cost: float = 1.0
    ) -> tuple[Ticket[Item], Ticket[Item] | None]:
        """The request's ticket, and the one that had to leave because the queue was full; that may be its own.

        `weight` is above 0; the newest one of a tenant counts from its next request on. `cost` is what serving the
        request takes of its tenant's share.
        """
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = _Line(tenant, weight, self._time)
        line.weight = max(weight, _LEAST_WEIGHT)
        ticket = Ticket(item, tenant, deadline, cost=cost)
        line.tickets.append(ticket)
        line.count += 1
        self._count += 1
        self._rank(self._deadlines, deadline, ticket)
        if not line.queued:
            line.queued = True
            line.start = max(line.start, self._time)
            self._rank(self._ready, line.start, line)
        if line.count / line.weight > line.bid:
            line.bid = line.count / line.weight
            self._rank(self._longest, -line.bid, line)
        pushed_out = self._push_out() if self._count > self._most else None
        self._clear_away()
        return ticket, pushed_out

    def take(self, now: float = -math.inf) -> Ticket[Item] | None:
        """The next request to be served; None when nobody waits. Never one whose deadline is not after `now`: those
        stay for `expire`. Without `now` the owner watches deadlines by itself."""
        self._find_lapsed(now)
        if self.head() is not None:
            _, _, line = heappop(self._ready)
            self._time = line.start
            ticket = line.tickets.popleft()
            line.start += ticket.cost / line.weight
            if line.count > 1:
                self._rank(self._ready, line.start, line)
            else:
                self._rest(line)
            self._leave(ticket)
            self._forget()
            return ticket
        return None

    def head(self) -> Ticket[Item] | None:
        """The request that `take` would give, its deadline aside; it stays. None when nobody waits."""
        while self._count:
            line = self._ready[0][2]
            while line.tickets and not line.tickets[0].waiting:
                line.tickets.popleft()
            if line.tickets:
                return line.tickets[0]
            heappop(self._ready)
            self._rest(line)
        return None

    def shed(self) -> Ticket[Item] | None:
        """The newest request of the tenant that holds most for its weight, which has left; None when nobody waits."""
        return self._push_out() if self._count else None

    def cancel(self, ticket: Ticket[Item]) -> bool:
        """Whether the request was still waiting; it is gone now."""
        if not ticket.waiting:
            return False
        self._leave(ticket)
        self._clear_away()
        return True

    def expire(self, now: float) -> list[Ticket[Item]]:
        """The requests whose deadline has come, each handed out once."""
        self._find_lapsed(now)
        lapsed, self._lapsed = self._lapsed, []
        return lapsed

    def next_deadline(self) -> float | None:
        """When `expire` is to be called next; None when nobody waits."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _find_lapsed(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heappop(self._deadlines)[2]
            if ticket.waiting:
                self._leave(ticket)
                self._lapsed.append(ticket)

    def _leave(self, ticket: Ticket[Item]) -> None:
        ticket.waiting = False
        line = self._lines[ticket.tenant]
        line.count -= 1
        self._count -= 1
        if self._count == 0:
            # The end of a busy period: nobody is ahead of anybody.
            self._time = 0.0
            for kept in (self._lines, self._ready, self._resting, self._longest, self._deadlines):
                kept.clear()
        elif len(line.tickets) > 2 * line.count + _FEW:
            line.tickets = deque(one for one in line.tickets if one.waiting)

    def _push_out(self) -> Ticket[Item]:
        """The newest request of the line that holds most for its weight, which has left."""
        while True:
            bid, _, line = self._longest[0]
            if -bid == line.bid and line.count / line.weight >= line.bid:
                break
            heappop(self._longest)
            if -bid == line.bid:  # it has become shorter since
                line.bid = line.count / line.weight
                if line.count:
                    self._rank(self._longest, -line.bid, line)
        while not (ticket := line.tickets.pop()).waiting:
            pass
        self._leave(ticket)
        return ticket

    def _rest(self, line: _Line[Item]) -> None:
        line.queued = False
        self._rank(self._resting, line.start, line)

    def _forget(self) -> None:
        """Drops lines that virtual time has caught up with: they would begin anew exactly there."""
        while self._resting and self._resting[0][0] <= self._time:
            line = heappop(self._resting)[2]
            if not line.queued and line.start <= self._time and self._lines.get(line.tenant) is line:
                del self._lines[line.tenant]

    def _clear_away(self) -> None:
        if len(self._deadlines) > 2 * self._count + _FEW:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapify(self._deadlines)
        if len(self._longest) > 2 * len(self._lines) + _FEW:
            for line in self._lines.values():
                line.bid = line.count / line.weight
            self._longest = [(-line.bid, rank, line) for rank, line in enumerate(self._lines.values()) if line.count]
            heapify(self._longest)

    def _rank(self, heap: list[tuple[float, int, Entry]], key: float, entry: Entry) -> None:
        self._serial += 1
        heappush(heap, (key, self._serial, entry))
