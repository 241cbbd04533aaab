"""The fair queue against plain models of it: nothing is lost or comes twice, and shares follow weights."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.fair import FairQueue, Ticket

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.5, "e": 1.0}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcde"), st.integers(1, 30)),
        st.tuples(st.just("take"), st.just(""), st.just(0)),
        st.tuples(st.just("cancel"), st.just(""), st.integers(0, 400)),
        st.tuples(st.just("expire"), st.just(""), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 9)),
    ),
    max_size=400,
)


@given(STEPS, st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_every_request_leaves_exactly_once_in_its_tenants_order(steps: list[tuple[str, str, int]], most: int) -> None:
    queue: FairQueue[int] = FairQueue(most)
    tickets: list[Ticket[int]] = []
    waiting: dict[int, Ticket[int]] = {}
    lapsed: set[int] = set()  # passed their deadline, not handed out yet
    now = 0.0

    def gone(ticket: Ticket[int]) -> None:
        assert not ticket.waiting
        del waiting[ticket.item]

    for kind, tenant, number in [*steps, *[("take", "", 0)] * 20, ("wait", "", 99), ("expire", "", 0)]:
        late = {item for item, ticket in waiting.items() if ticket.deadline <= now}
        if kind == "put":
            ticket, out = queue.put(tenant, WEIGHTS[tenant], len(tickets), now + number)
            tickets.append(ticket)
            waiting[ticket.item] = ticket
            if out is not None:
                gone(out)
        elif kind == "take":
            taken = queue.take(now)
            assert (taken is not None) == bool(waiting.keys() - late - lapsed)  # work-conserving
            lapsed |= late
            if taken is not None:
                assert taken.deadline > now
                older = (one for one in waiting.values() if one.tenant == taken.tenant and one.deadline > now)
                assert taken is min(older, key=lambda one: one.item)
                gone(taken)
        elif kind == "cancel" and tickets:
            ticket = tickets[number % len(tickets)]
            was = ticket.item in waiting and ticket.item not in lapsed
            assert queue.cancel(ticket) == was
            if was:
                gone(ticket)
        elif kind == "expire":
            expired = queue.expire(now)
            assert {ticket.item for ticket in expired} == late | lapsed
            lapsed = set()
            for ticket in expired:
                gone(ticket)
        elif kind == "wait":
            now += number
        assert len(queue) == len(waiting) - len(lapsed) <= most
        following = queue.next_deadline()
        assert following == min((waiting[item].deadline for item in waiting.keys() - lapsed), default=None)
    assert not waiting


@given(st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.0, 3.0, 10.0]), min_size=2, max_size=6), st.integers(10, 300))
@settings(max_examples=60, deadline=None)
def test_tenants_that_all_wait_are_served_by_weight_within_the_bound_of_the_paper(
    weights: list[float], services: int
) -> None:
    queue: FairQueue[int] = FairQueue(10_000)
    served = Counter[int]()
    for tenant, weight in enumerate(weights):
        for _ in range(services):
            queue.put(str(tenant), weight, tenant, 1.0)
    for _ in range(services):
        taken = queue.take(0.0)
        assert taken is not None
        served[taken.item] += 1
        for one, other in itertools.combinations(range(len(weights)), 2):
            apart = abs(served[one] / weights[one] - served[other] / weights[other])
            assert apart <= 1 / weights[one] + 1 / weights[other] + 1e-9


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 2.0, 8.0]))
@settings(max_examples=30, deadline=None)
def test_leaving_and_coming_back_gains_nothing(seed: int, weight: float) -> None:
    """A tenant that waits with one request at a time, and now and then not at all, gets at most its share."""
    dice = random.Random(seed)  # hypothesis finds a thousand throws of its own too much
    queue: FairQueue[str] = FairQueue(10_000)
    for _ in range(1000):
        queue.put("steady", 1.0, "steady", 1.0)
    served, begun = Counter[str](), False
    for _ in range(500):
        if dice.random() < 0.7 and not begun:
            queue.put("fickle", weight, "fickle", 1.0)
            begun = True
        taken = queue.take(0.0)
        assert taken is not None
        served[taken.item] += 1
        if taken.item == "fickle":
            begun = False
        elif begun and dice.random() < 0.3:
            ticket = queue.put("fickle", weight, "fickle", 1.0)[0]
            queue.cancel(ticket)  # what never was served costs nothing and earns nothing
    assert served["fickle"] / weight <= served["steady"] + 1 + 1 / weight


@given(st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_an_idle_tenant_earns_no_credit(idle_for: int) -> None:
    queue: FairQueue[str] = FairQueue(10_000)
    queue.put("idle", 1.0, "idle", 1.0)
    for _ in range(1000):
        queue.put("busy", 1.0, "busy", 1.0)
    for _ in range(idle_for + 1):
        queue.take(0.0)
    for _ in range(100):
        queue.put("idle", 1.0, "idle", 1.0)
    served = Counter[str]()
    for _ in range(40):
        taken = queue.take(0.0)
        assert taken is not None
        served[taken.item] += 1
    assert abs(served["idle"] - served["busy"]) <= 2


@given(st.integers(2, 60), st.sampled_from([1.0, 4.0]))
@settings(max_examples=30, deadline=None)
def test_a_flood_does_not_fill_the_queue_for_others(most: int, weight: float) -> None:
    queue: FairQueue[int] = FairQueue(most)
    for number in range(most * 3):
        _, out = queue.put("flood", 1.0, number, 1.0)
        assert (out is not None) == (number >= most)
    fair = int(most * weight / (1 + weight))
    for number in range(fair):
        ticket, out = queue.put("other", weight, number, 1.0)
        assert ticket.waiting and out is not None and out.tenant == "flood"


def test_tenants_that_came_and_went_leave_nothing_behind() -> None:
    queue: FairQueue[int] = FairQueue(1000)
    for number in range(10):
        queue.put("stays", 1.0, number, 1e9)
    sizes = []
    for number in range(20_000):
        ticket, _ = queue.put(f"tenant{number}", 1.0, number, 1e9 + number)
        if number % 2:
            queue.cancel(ticket)
        queue.put("stays", 1.0, number, 1e9)
        queue.take(0.0)
        queue.take(0.0)
        parts = (queue._lines, queue._ready, queue._resting, queue._longest, queue._deadlines)
        sizes.append(sum(len(part) for part in parts))
    assert max(sizes) < 2000
