"""The queue against a plain model of it: what goes in comes out once, with its like, in order, within the limits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from penstock.core.messages import Request
from penstock.runtime.batching import policy
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.batching.queue import Lanes, Waiting


@dataclass
class Arrival:
    rows: int
    key: str
    priority: int
    deadline: float
    left: bool


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        rows=st.integers(1, 9),
        key=st.sampled_from("xyz"),
        priority=st.integers(0, 2),
        deadline=st.sampled_from([5.0, 1e9]),
        left=st.booleans(),
    ),
    max_size=60,
)


def fill(arrivals: list[Arrival], loop: asyncio.AbstractEventLoop) -> tuple[Lanes, list[Waiting]]:
    lanes, all_waiting = Lanes(), []
    for place, arrival in enumerate(arrivals):
        future: asyncio.Future[object] = loop.create_future()
        if arrival.left:
            future.cancel()
        request = Request("m", {}, priority=arrival.priority, deadline=arrival.deadline)
        waiting = Waiting(request, future, arrival.rows, arrival.key, float(place) / 100)
        lanes.push(waiting)
        all_waiting.append(waiting)
    return lanes, all_waiting


@given(ARRIVALS, st.integers(1, 12), st.integers(1, 3))
def test_every_request_comes_out_exactly_once(arrivals: list[Arrival], max_rows: int, free: int) -> None:
    loop = asyncio.new_event_loop()
    lanes, everything = fill(arrivals, loop)
    limits = BatchLimits(max_rows)
    taken: list[Waiting] = []
    expired: list[Waiting] = []
    while lanes.size:
        batch, reason, late = lanes.take(10.0, free, limits)
        expired += late
        taken += batch
        if batch:
            assert reason
            assert len({(item.key, item.request.priority) for item in batch}) == 1
            assert len(batch) == 1 or sum(item.rows for item in batch) <= max_rows
            assert [item.since for item in batch] == sorted(item.since for item in batch)
    loop.close()
    assert {id(item) for item in taken} == {
        id(item) for item in everything if not item.future.cancelled() and item.request.deadline > 10
    }
    assert len(taken) + len(expired) + len(lanes.dropped) == len(everything)
    assert lanes.rows == 0


@given(ARRIVALS)
def test_sweep_removes_exactly_the_late_and_the_left(arrivals: list[Arrival]) -> None:
    loop = asyncio.new_event_loop()
    lanes, everything = fill(arrivals, loop)
    late = lanes.sweep(10.0)
    loop.close()
    assert {id(item) for item in late} == {
        id(item) for item in everything if not item.future.cancelled() and item.request.deadline <= 10
    }
    kept = [item for item in everything if not item.future.cancelled() and item.request.deadline > 10]
    assert lanes.size == len(kept)
    assert lanes.rows == sum(item.rows for item in kept)


@given(st.integers(0, 200), st.floats(0, 2), st.integers(1, 64), st.sampled_from([0.0, 0.5]))
def test_a_batch_waits_at_most_its_delay(rows: int, waited: float, max_rows: int, delay_s: float) -> None:
    reason = policy.release(rows, waited, BatchLimits(max_rows, delay_s))
    assert (reason == "") == (rows < max_rows and delay_s > 0 and waited < delay_s)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 64))
def test_even_shares_use_every_free_worker_and_respect_the_limit(rows: int, free: int, max_rows: int) -> None:
    share = policy.share(rows, free, BatchLimits(max_rows))
    assert 1 <= share <= max_rows
    assert share == max_rows or share * free >= rows


@given(st.integers(1, 100), st.lists(st.integers(1, 64), max_size=5, unique=True).map(sorted))
def test_padding_reaches_the_next_allowed_size(rows: int, sizes: list[int]) -> None:
    padding = policy.padding(rows, sizes)
    larger = [size for size in sizes if size >= rows]
    assert padding == (larger[0] - rows if larger else 0)


@given(ARRIVALS, st.integers(0, 60))
def test_cut_removes_the_last_of_the_least_urgent_one_by_one(arrivals: list[Arrival], rows: int) -> None:
    loop = asyncio.new_event_loop()
    lanes, everything = fill(arrivals, loop)
    cut = lanes.cut(rows)
    expected = sorted(everything, key=lambda item: (item.request.priority or 99, item.since))
    kept: list[Waiting] = []
    left = sum(item.rows for item in everything)
    while left > rows:
        left -= expected.pop().rows
    assert {id(item) for item in cut} == {id(item) for item in everything if item not in expected}
    assert (lanes.rows, lanes.size) == (left, len(expected))
    while lanes.size:
        batch, _, late = lanes.take(0.0, 1, BatchLimits(9))
        kept += batch + late
    loop.close()
    assert len(kept) + len(lanes.dropped) == len(expected)
    assert lanes.rows == 0


def test_cutting_a_queue_of_many_lanes_takes_no_longer_than_a_batch_may() -> None:
    """2,048 requests that cannot be joined, cut to 12: the loop must not stand still for that."""
    loop = asyncio.new_event_loop()
    lanes, _ = fill([Arrival(1, f"{place}", 0, 1e9, False) for place in range(2048)], loop)
    loop.close()
    began = time.process_time()
    assert len(lanes.cut(12)) == 2036
    assert time.process_time() - began < 0.1
