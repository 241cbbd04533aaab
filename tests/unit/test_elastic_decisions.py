"""How many workers a version has: grown by waiting, shrunk by calm, never to and fro."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.workers.elastic import CALM_S, LOOK_S, Memory, Seen, decide


def run(looks, *, least=1, most=4, size=1, start_looks=3):
    """Sizes after each look. A look is (requests that compute or wait, seconds waited); new workers take a while."""
    memory, live, ready_at, sizes = Memory(), size, 0, []
    for at, (demand, waited_s) in enumerate(looks):
        if live < size and at >= ready_at:
            live = size
        live = min(live, size)
        before = size
        size, memory = decide(Seen(at * LOOK_S, size, live, min(live, demand), waited_s), least, most, memory)
        if size > before:
            ready_at = at + start_looks
        sizes.append(size)
    return sizes


def test_waiting_grows_one_by_one_to_the_most():
    sizes = run([(9, 0.5)] * 40)
    assert sizes[-1] == 4
    assert all(after - before in (0, 1) for before, after in itertools.pairwise(sizes))
    assert sizes.index(2) == 1, "two looks, 0.2 s, until the first growth"


def test_one_long_wait_alone_grows_nothing():
    assert set(run([(9, 0.5), (1, 0.0)] * 20)) == {1}
    assert set(run([(9, 0.05)] * 40)) == {1}


def test_calm_shrinks_to_what_was_busy_at_once():
    calm = int(CALM_S / LOOK_S) + 2
    assert run([(2, 0.0)] * calm, size=4)[-1] == 2
    assert run([(0, 0.0)] * calm, size=4, least=2)[-1] == 2
    assert run([(4, 0.0)] * 3 * calm, size=4)[-1] == 4


def test_growing_soon_after_shrinking_waits_longer_for_the_next_calm():
    period = [(0, 0.0)] * (int(CALM_S / LOOK_S) + 5) + [(9, 0.5)] * 10
    sizes = run(period * 40, size=2, most=2)
    shrinks = [at for at, (before, after) in enumerate(itertools.pairwise(sizes)) if after < before]
    assert 1 <= len(shrinks) <= 2, "it goes to and fro"


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 2)), max_size=200), st.integers(1, 4), st.integers(0, 4))
def test_the_number_stays_between_least_and_most(looks, least, more):
    sizes = run(looks, least=least, most=least + more, size=least)
    assert all(least <= size <= least + more for size in sizes)
