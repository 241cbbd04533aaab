"""What a batch costs, when a request will be answered, and which queues are overloads."""

from __future__ import annotations

import random

import pytest

from penstock.runtime.batching.overload import (
    Ahead,
    Cost,
    Standing,
    answer_s,
    backlog_rows,
    kept_rows,
    window_s,
)


def learnt(*batches: tuple[int, float]) -> Cost:
    cost = Cost()
    for rows, seconds in batches:
        cost = cost.learn(rows, seconds)
    return cost


def test_nothing_is_expected_of_a_model_that_never_ran() -> None:
    assert Cost().of(1) == Cost().of(64) == 0.0


@pytest.mark.parametrize(("fixed_s", "row_s"), [(0.01, 0.0), (0.0, 0.001), (0.005, 0.0005)])
def test_cost_of_any_size_follows_from_batches_of_a_few(fixed_s: float, row_s: float) -> None:
    cost = learnt(*((rows, fixed_s + rows * row_s) for rows in (1, 4, 2, 8, 1, 16, 3, 5)))
    for rows in (1, 10, 32):
        assert cost.of(rows) == pytest.approx(fixed_s + rows * row_s, rel=0.01)


def test_batches_that_were_never_seen_are_judged_kindly() -> None:
    """Ten single rows of 10 ms say nothing about 32 rows: they may take as long as one."""
    assert learnt(*[(1, 0.01)] * 10).of(32) == pytest.approx(0.01)


def test_change_of_speed_is_learnt_within_ten_batches() -> None:
    cost = learnt(*[(4, 0.01)] * 50, *[(4, 0.1)] * 10)
    assert 0.08 < cost.of(4) < 0.1
    assert learnt(*[(4, 0.1)] * 50, *[(4, 0.01)] * 15).of(4) < 0.02


def test_answer_comes_after_what_runs_what_waits_and_its_own_batch() -> None:
    cost = learnt(*((rows, 0.01) for rows in (1, 4, 8, 2, 8)))
    alone = Ahead(rows=0, requests=0, slots=1, running_s=0.004, most_rows=8, joined=True)
    assert answer_s(cost, alone, 1) == pytest.approx((0.004, 0.014))
    full = Ahead(rows=17, requests=17, slots=1, running_s=0.0, most_rows=8, joined=True)
    assert answer_s(cost, full, 1) == pytest.approx((0.02, 0.03)), "it joins the third batch"
    apart = Ahead(rows=10, requests=10, slots=2, running_s=0.02, most_rows=1, joined=False)
    assert answer_s(cost, apart, 1) == pytest.approx((0.06, 0.07))


def judged(lows: list[int], kept: int = 16) -> list[bool]:
    standing, held = Standing(), []
    for low in lows:
        standing = standing.after(low, kept, refused=0)
        held.append(standing.held)
    return held


@pytest.mark.parametrize(
    "lows",
    [
        [0, 500, 0, 0],  # a burst that is worked off
        [200, 400, 512, 512, 512, 511, 512, 510, 512, 512, 512, 512],  # callers who came and wait for their answers
        [500, 450, 400, 350, 300],  # a queue that falls
        [10, 12, 14, 16, 14, 16],  # short enough to keep the workers busy
    ],
)
def test_bursts_and_crowds_are_no_overloads(lows: list[int]) -> None:
    assert not any(judged(lows))


def test_queue_that_grows_in_four_windows_is_an_overload() -> None:
    assert judged([20, 60, 100, 140]) == [False, False, False, True]


def test_queue_that_grows_slowly_and_with_breaks_is_found_in_the_end() -> None:
    lows = [20 + 3 * window + (-4 if window % 2 else 0) for window in range(30)]
    assert True in judged(lows)


def test_overload_ends_with_the_first_window_that_refuses_nobody() -> None:
    held = Standing(held=True)
    assert held.after(3, 16, refused=40).held
    assert held.after(16, 16, refused=1).held
    assert not held.after(3, 16, refused=0).held


def test_kept_queue_fills_the_next_batch_of_every_slot() -> None:
    assert kept_rows(slots=2, most_rows=64) == 256
    assert kept_rows(slots=4, most_rows=1) >= 4 * 4
    assert kept_rows(slots=0, most_rows=1) >= 1


def test_windows_and_backlogs_are_by_the_time_that_batches_take() -> None:
    assert window_s(0.001) == pytest.approx(0.1) and window_s(3.0) == pytest.approx(6.0)
    slow, fast = learnt((1, 3.0)), learnt((1, 0.001))
    assert backlog_rows(slow, 2, 1, 1.0) == kept_rows(2, 1), "never less than what keeps the workers busy"
    assert 500 < backlog_rows(fast, 2, 1, 1.0) <= 1000


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_load_below_capacity_is_hardly_ever_taken_for_an_overload(load: float) -> None:
    """Ten minutes of uneven arrivals at a single worker of 10 ms, whose queue is judged as the batcher does."""
    chance, service_s = random.Random(1), 0.01
    now = free_at = 0.0
    standing, window_ends, low, refused, total = Standing(), 0.1, 0, 0, 0
    starts: list[float] = []  # when each that waits begins
    while now < 600.0:
        now += chance.expovariate(load / service_s)
        while starts and starts[0] <= now:
            starts.pop(0)
            low = min(low, len(starts))
        while now >= window_ends:
            standing = standing.after(low, kept_rows(1, 1), 0)
            low, window_ends = len(starts), window_ends + 0.1
        total += 1
        if standing.held and len(starts) >= kept_rows(1, 1):
            refused += 1
            continue
        free_at = max(free_at, now) + service_s
        starts.append(free_at - service_s)
    assert refused / total < 0.002
