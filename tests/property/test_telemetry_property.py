from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.messages import Timings
from penstock.telemetry.histogram import PART_BOUNDS_S, TOTAL_BOUNDS_S, Histogram, quantile
from penstock.telemetry.metrics import ForwardingMetrics, Metrics, ModelMetrics

bounds = st.sampled_from([round(bound * 1e9) for bound in TOTAL_BOUNDS_S])
nanoseconds = st.lists(st.integers(0, 200 * 10**9) | bounds | bounds.map(lambda bound: bound + 1), max_size=60)


@given(st.lists(nanoseconds, max_size=5))
def test_buckets_hold_what_numpy_counts_however_the_values_are_fed(groups: list[list[int]]) -> None:
    histogram = Histogram(TOTAL_BOUNDS_S)
    for group in groups:
        histogram.add(np.array(group, dtype=np.int64))
    values = np.array([value for group in groups for value in group], dtype=np.int64)
    # numpy's buckets take their lower edge in, Prometheus's their upper one: count the mirror image.
    edges = np.round(np.array((*TOTAL_BOUNDS_S, 1e6)) * 1e9).astype(np.int64)
    expected = np.histogram(-values, bins=np.concatenate((-edges[::-1], [1])))[0][::-1]
    assert histogram.counts.tolist() == expected.tolist()
    assert histogram.sum_ns == int(values.sum())
    assert histogram.count == len(values)


@given(st.lists(st.integers(1, 100 * 10**9), min_size=1, max_size=80), st.floats(0, 1))
def test_an_estimated_quantile_is_within_one_bucket_of_the_true_one(values: list[int], q: float) -> None:
    histogram = Histogram(PART_BOUNDS_S)
    histogram.add(np.array(values, dtype=np.int64))
    estimate = histogram.quantile_s(q)
    true_s = float(np.quantile(np.array(values) / 1e9, q, method="inverted_cdf"))
    assert estimate is not None
    edges = (0.0, *PART_BOUNDS_S)
    if true_s > edges[-1]:
        assert estimate == edges[-1]
    else:
        place = int(np.searchsorted(PART_BOUNDS_S, true_s, side="left"))
        assert edges[place] <= estimate <= edges[place + 1]


@given(st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_quantiles_never_fall_as_q_grows(counts: list[int]) -> None:
    answers = [quantile(PART_BOUNDS_S, counts, q / 20) for q in range(21)]
    if sum(counts) == 0:
        assert set(answers) == {None}
    else:
        known = [answer for answer in answers if answer is not None]
        assert known == sorted(known) and len(known) == 21


events = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.integers(0, 10**8), st.integers(1, 9)),
        st.tuples(st.just("batch"), st.integers(0, 10**8), st.integers(1, 5000)),
        st.tuples(st.just("failure"), st.integers(0, 10**8), st.just(0)),
        st.tuples(st.just("look"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(events)
def test_looking_at_any_point_loses_and_doubles_nothing(happened: list[tuple[str, int, int]]) -> None:
    model = Metrics().model("m", 1)
    for kind, ns, rows in happened:
        seconds = ns / 1e9
        if kind == "request":
            model.record(Timings(1.0, 1.0, 1.0, 1.0 + seconds, 0.0, seconds, 0.0), rows)
        elif kind == "batch":
            model.record_batch(rows, 0, "full", 0.0, seconds, seconds, 0)
        elif kind == "failure":
            model.record_failure("model_error", seconds)
        else:
            model.snapshot()
    statistics = model.statistics()
    requests = [(ns, rows) for kind, ns, rows in happened if kind == "request"]
    batches = [(ns, rows) for kind, ns, rows in happened if kind == "batch"]
    assert statistics.success.count == len(requests)
    assert statistics.compute_infer.ns == sum(ns for ns, _ in requests)
    assert statistics.inference_count == sum(rows for _, rows in requests)
    assert statistics.execution_count == len(batches)
    assert {size: tally.compute_output.count for size, tally in statistics.batches.items()} == {
        size: sum(1 for _, rows in batches if rows == size) for size in {rows for _, rows in batches}
    }
    assert sum(tally.compute_infer.ns for tally in statistics.batches.values()) == sum(ns for ns, _ in batches)
    assert statistics.fail.count == sum(1 for kind, _, _ in happened if kind == "failure")


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1), st.integers(1, 64)), max_size=40),
    st.lists(st.tuples(st.sampled_from(["invalid", "queue_full", "cancelled"]), st.floats(0, 1)), max_size=10),
    st.integers(1, 7),
)
def test_what_another_process_forwards_adds_up_to_the_same(
    requests: list[tuple[float, float, int]], failures: list[tuple[str, float]], every: int
) -> None:
    here, there = ModelMetrics("m", "1"), ModelMetrics("m", "1")
    forwarding = ForwardingMetrics("m", "1", there.absorb)
    for number, (queue_s, compute_s, rows) in enumerate(requests):
        timings = Timings(
            received=1.0, submitted=1.0, dispatched=1.0 + queue_s, finished=1.0 + queue_s + compute_s,
            compute_infer_s=compute_s,
        )  # fmt: skip
        for recorder in (here, forwarding):
            recorder.record(timings, rows)
            recorder.record_batch(rows, 0, "idle", 0.0, compute_s, 0.0, 0, queue_s)
        if number % every == 0:
            forwarding.fold()
    for reason, seconds in failures:
        here.record_failure(reason, seconds)
        forwarding.record_failure(reason, seconds)
    forwarding.fold()
    assert there.sums().statistics("m", "1") == here.sums().statistics("m", "1")
