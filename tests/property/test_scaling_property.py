"""Scaling: bounds hold, more load never means fewer replicas, and the same load gives the same answer."""

from __future__ import annotations

import itertools
import json
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scaling_simulator import EPOCH, samples_of

from penstock.fleet import knative
from penstock.fleet.bounds import bounded
from penstock.fleet.scaling import Load, Size, concurrency, queue_wait, rps
from penstock.fleet.spec import Replicas
from penstock.fleet.state import LoadSample

values = st.lists(st.floats(0, 1000), min_size=1, max_size=90)
plugs = st.sampled_from([concurrency.plug, rps.plug, queue_wait.plug])
KNATIVE = {"slack": 0, "noise": 0, "settle_s": 0}


def naive_average(values: dict[int, float], now: int, window: int) -> float:
    """By Knative's words: over the window's seconds since the first and until the last sample, missing ones as 0."""
    last, first = max(values), min(values)
    low = max(first, now - window + 1)
    return sum(values.get(at, 0.0) for at in range(low, last + 1)) / (last - low + 1)


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 1000), min_size=1), st.integers(0, 9), st.sampled_from([6, 60]))
def test_window_average_is_the_plain_average_of_seconds(by_second, later, window):
    now = max(by_second) + later
    gaps = [after - before for before, after in itertools.pairwise(sorted(by_second))]
    assume(later < window and all(gap < window for gap in gaps))  # else what was before is forgotten
    got = knative.window_average(
        sorted((float(at), value) for at, value in by_second.items()), float(now), float(window)
    )
    assert math.isclose(got, naive_average(by_second, now, window), abs_tol=2e-6)


@given(st.lists(st.floats(-0.4, 0.4), min_size=80, max_size=80), st.sampled_from([6.0, 60.0]), st.floats(0, 0.9))
def test_ticks_that_come_early_or_late_change_no_average(jitter, window, late):
    samples = [(at + shift, 4.0) for at, shift in enumerate(jitter)]
    assert knative.window_average(samples, samples[-1][0] + late, window) == 4.0


@given(values, values, st.integers(1, 20), st.sampled_from([concurrency.plug, rps.plug]))
def test_more_load_never_means_fewer_replicas(low, more, ready, plug):
    count = min(len(low), len(more))
    high = [a + b for a, b in zip(low[:count], more[:count], strict=True)]
    options = plug.options({**KNATIVE, "target": 10})
    memory = {"since": EPOCH}
    sizes = [
        plug.size(options, Load(EPOCH + count - 1, samples_of(series), ready, ready, memory)).replicas
        for series in (low[:count], high)
    ]
    assert sizes[0] <= sizes[1]


@given(values, st.integers(0, 20), st.integers(0, 20), plugs, st.integers(0, 100))
def test_an_answer_is_a_pure_and_storable_function_of_the_load(series, ready, wished, plug, late):
    options = plug.options({})
    load = Load(EPOCH + len(series) + late, samples_of(series), ready, wished)
    first, again = plug.size(options, load), plug.size(options, load)
    assert first == again
    assert first.replicas >= 0
    stored = json.loads(json.dumps(first.memory))  # it goes through the store
    after = Load(load.now + 1, load.samples, ready, first.replicas, stored)
    direct = Load(load.now + 1, load.samples, ready, first.replicas, first.memory)
    assert plug.size(options, after).replicas == plug.size(options, direct).replicas


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 300), plugs, st.integers(0, 30))
def test_exactly_constant_load_comes_to_rest(load, plug, begin):
    options = plug.options({})
    samples = [LoadSample(EPOCH + at, load, load, 0.0) for at in range(600)]
    memory, size, sizes = {}, begin, []
    for now in range(60, 600):
        answer = plug.size(options, Load(EPOCH + now, samples[max(0, now - 120) : now + 1], size, size, memory))
        memory, size = answer.memory, answer.replicas
        sizes.append(size)
    if plug is not queue_wait.plug:  # that one gives back slowly, one a minute
        assert len(set(sizes[-200:])) == 1
    changes = [b - a for a, b in itertools.pairwise(sizes) if a != b]
    assert all(change > 0 for change in changes) or all(change < 0 for change in changes), changes


@given(st.integers(0, 500), st.integers(0, 50), st.integers(0, 50), values, st.integers(0, 9), st.integers(0, 9))
def test_bounds_are_kept_whatever_policies_ask_for(asked, minimum, more, series, ready, wished):
    bounds = Replicas(minimum=minimum, maximum=max(1, minimum + more))
    load = Load(EPOCH + len(series), samples_of(series), ready, wished)
    assert bounds.minimum <= bounded(Size(asked, ""), bounds, load).replicas <= bounds.maximum
    if series[-1] > 0:
        assert bounded(Size(asked, ""), bounds, load).replicas >= 1
