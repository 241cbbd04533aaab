from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from penstock.core import errors
from penstock.core.messages import Timings
from penstock.runtime.batching import policy
from penstock.telemetry import exposition, language_exposition
from penstock.telemetry.histogram import quantile
from penstock.telemetry.metrics import FOLD_REQUESTS, ListenerFigures, Metrics, ModelMetrics, Probes, ResidencyFigures
from penstock.telemetry.spans import SpanCounts
from penstock.telemetry.statistics import BATCH_SIZES, RELEASES

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SUFFIX = {"counter": "_total"}


def timings(total: float = 0.004, queue: float = 0.001, infer: float = 0.002) -> Timings:
    return Timings(
        received=10.0,
        submitted=10.0 + total / 10,
        dispatched=10.0 + total / 10 + queue,
        finished=10.0 + total,
        compute_input_s=1e-5,
        compute_infer_s=infer,
        compute_output_s=2e-5,
        batch_rows=1,
        release="idle",
    )


def parsed(metrics: Metrics) -> dict[str, Metric]:
    families = text_string_to_metric_families(exposition.text(metrics.snapshot()).decode())
    return {family.name + SUFFIX.get(family.type, ""): family for family in families}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    for family in parsed(metrics).values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no series {name} {labels}")


def every_reason() -> list[str]:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PenstockError)
    ]
    return sorted({kind.reason for kind in kinds})


def fill(model: ModelMetrics) -> None:
    """Makes every series that a model can have."""
    for total in (1e-6, 1e-4, 5e-4, 2e-3, 4e-3, 7e-3, 0.02, 0.04, 0.07, 0.2, 0.5, 30.0, 300.0):
        model.record(timings(total, queue=total / 2, infer=total / 3), 3)
    for release in (*RELEASES, "something new"):
        for wait in (1e-4, 1e-3, 1e-2, 1.0):
            model.record_batch(3, 1, release, 1e-5, 2e-3, 1e-5, 0, wait)
    for reason in (*every_reason(), "something new"):
        model.refused(reason)


def series(metrics: Metrics) -> Iterator[tuple[str, dict[str, str]]]:
    for family in parsed(metrics).values():
        for sample in family.samples:
            yield sample.name, sample.labels


def test_a_model_has_at_most_60_series_and_the_rest_at_most_200() -> None:
    metrics = Metrics({"version": "1", "python": "3"})
    for number in range(3):
        fill(metrics.model(f"m{number}", 1))
        metrics.model(f"m{number}", 1).probes = Probes(
            workers=lambda: [{"pid": 9, "state": "ready", "restarts": 1, "rss_bytes": 5}] * 40
        )
    metrics.spans = lambda: SpanCounts(1, 2, 3)
    for kind in ("http", "grpc"):
        metrics.listener(
            kind,
            lambda: ListenerFigures(
                {f"{n}xx": 1 for n in range(10)}, {f"reason{n}": 1 for n in range(1000)}, open_connections=1
            ),
        )
    of_model = [labels["model"] for name, labels in series(metrics) if "model" in labels and "worker" not in labels]
    counts = {name: of_model.count(name) for name in set(of_model)}
    assert set(counts) == {"m0", "m1", "m2"}
    assert max(counts.values()) <= 60
    assert sum(1 for _ in series(metrics)) - len(of_model) <= 200


def test_100000_versions_that_come_and_go_leave_no_series_and_no_memory_behind() -> None:
    metrics = Metrics()
    before = sum(1 for _ in series(metrics))
    one = timings()
    blocks = sys.getallocatedblocks()
    for number in range(100_000):
        model = metrics.model(f"tenant{number}", number)
        model.record(one, 1)
        model.refused("queue_full")
        metrics.forget(f"tenant{number}", number)
    assert sys.getallocatedblocks() - blocks < 1000
    assert list(metrics) == []
    assert sum(1 for _ in series(metrics)) == before


def test_nothing_is_lost_at_a_fold_and_statistics_agree_with_metrics() -> None:
    metrics = Metrics()
    model = metrics.model("iris", 3)
    n = 2 * FOLD_REQUESTS + 7
    for number in range(n):
        model.record(timings(), rows=number % 3 + 1)
        model.record_batch(number % 3 + 1, 1, policy.IDLE, 1e-5, 2e-3, 2e-5, number % 2)
    model.record_failure("deadline", 0.5)
    model.refused("queue_full")
    rows = sum(number % 3 + 1 for number in range(n))

    statistics = model.statistics()
    assert (statistics.success.count, statistics.success.ns) == (n, n * 4_000_000)
    assert statistics.queue.ns == pytest.approx(n * 1_000_000, rel=1e-9)
    assert statistics.compute_infer.ns == n * 2_000_000
    assert (statistics.inference_count, statistics.execution_count) == (rows, n)
    assert (statistics.fail.count, statistics.fail.ns) == (2, 500_000_000)
    assert sum(size * tally.compute_infer.count for size, tally in statistics.batches.items()) == rows
    assert sum(tally.compute_infer.ns for tally in statistics.batches.values()) == n * 2_000_000

    assert value(metrics, "penstock_requests_total", outcome="success") == n
    assert value(metrics, "penstock_requests_total", outcome="deadline") == 1
    assert value(metrics, "penstock_requests_total", outcome="queue_full") == 1
    assert value(metrics, "penstock_rows_total") == rows
    assert value(metrics, "penstock_pad_rows_total") == n
    assert value(metrics, "penstock_batches_total", release="idle") == n
    assert value(metrics, "penstock_request_seconds_count") == n
    assert value(metrics, "penstock_request_seconds_sum") == pytest.approx(statistics.success.ns / 1e9)
    assert value(metrics, "penstock_request_seconds_bucket", le="0.001") == 0
    assert value(metrics, "penstock_request_seconds_bucket", le="0.005") == n
    assert value(metrics, "penstock_batch_wait_seconds_count") == 0, "a wait that is not known is not counted"


def test_the_rows_of_batches_are_a_histogram() -> None:
    metrics = Metrics()
    model = metrics.model("iris", 1)
    for rows in (1, 1, 2, 4, 5, 64, 65, 1000):
        model.record_batch(rows, 3, policy.IDLE, 0.0, 0.0, 0.0, 0)
    counts = {le: value(metrics, "penstock_batch_rows_bucket", le=le) for le in ("1", "4", "16", "64", "+Inf")}
    assert counts == {"1": 2, "4": 4, "16": 5, "64": 6, "+Inf": 8}
    assert value(metrics, "penstock_batch_rows_count") == 8
    assert value(metrics, "penstock_batch_rows_sum") == 1142


def test_the_last_inference_is_given_in_wall_clock_milliseconds() -> None:
    model = Metrics().model("iris", 1)
    assert model.statistics().last_inference_ms == 0
    now = time.monotonic()
    model.record(Timings(received=now - 5.1, submitted=now - 5.1, dispatched=now - 5.05, finished=now - 5.0), 1)
    assert model.statistics().last_inference_ms == pytest.approx((time.time() - 5.0) * 1e3, abs=500)


def test_probes_are_asked_at_each_scrape() -> None:
    metrics = Metrics()
    model = metrics.model("iris", 1)
    waiting = [3]
    model.probes = Probes(
        in_flight=lambda: 5,
        queued=lambda: waiting[0],
        workers=lambda: [{"pid": 77, "state": "ready", "restarts": 2, "rss_bytes": 1024}, {"state": "starting"}],
        executor="process",
    )
    model.record_batch(1, 0, policy.FULL, 0.0, 0.0, 0.0, 1)
    assert value(metrics, "penstock_requests_queued", model="iris") == 3
    waiting[0] = 4
    assert value(metrics, "penstock_requests_queued", model="iris") == 4
    assert value(metrics, "penstock_requests_in_flight", model="iris") == 5
    assert value(metrics, "penstock_worker_ready", worker="0") == 1
    assert value(metrics, "penstock_worker_ready", worker="1") == 0
    assert value(metrics, "penstock_worker_restarts_total", worker="0") == 2
    assert value(metrics, "penstock_worker_batches_total", worker="1") == 1
    assert value(metrics, "penstock_worker_resident_memory_bytes", worker="0") == 1024
    assert "77" not in [label for _, labels in series(metrics) for label in labels.values()]
    statistics = model.statistics()
    assert (statistics.in_flight, statistics.queued, statistics.executor) == (5, 4, "process")
    assert statistics.workers[0] == {"batches": 0, "pid": 77, "state": "ready", "restarts": 2, "rss_bytes": 1024}


def test_a_crowd_of_workers_is_summed_and_none_is_lost() -> None:
    metrics = Metrics()
    metrics.model("iris", 1).probes = Probes(workers=lambda: [{"state": "ready", "restarts": 1}] * 100)
    family = parsed(metrics)["penstock_worker_restarts_total"]
    assert sum(sample.value for sample in family.samples) == 100
    assert len(family.samples) == exposition.WORKER_SERIES + 1


def test_a_model_without_a_size_limit_cannot_fill_the_statistics() -> None:
    model = Metrics().model("free", 1)
    for rows in range(1, 3 * BATCH_SIZES):
        model.record_batch(rows * 1000, 0, policy.SINGLE, 0.0, 0.0, 0.0, 10**9)
    statistics = model.statistics()
    assert len(statistics.batches) == BATCH_SIZES
    assert statistics.execution_count == 3 * BATCH_SIZES - 1


def test_every_error_reason_has_an_outcome_of_the_documented_set() -> None:
    metrics = Metrics()
    model = metrics.model("iris", 1)
    for reason in every_reason():
        model.refused(reason)
    family = parsed(metrics)["penstock_requests_total"]
    assert {sample.labels["outcome"] for sample in family.samples} == set(exposition.OUTCOMES)
    assert sum(sample.value for sample in family.samples) == len(every_reason())


def test_releases_are_those_of_the_batching_policy() -> None:
    assert {policy.FULL, policy.IDLE, policy.DELAY, policy.SINGLE} == set(RELEASES) - {"other"}


def test_model_names_are_escaped_in_the_text() -> None:
    metrics = Metrics()
    metrics.model('we"ird\\na\nme', 1).refused("invalid")
    assert value(metrics, "penstock_requests_total", model='we"ird\\na\nme', outcome="invalid") == 1


def test_the_docs_list_every_metric_with_its_type_unit_labels_and_meaning() -> None:
    rows = re.findall(
        r"^\| `((?:penstock_|vllm:)\w+)` \| (\w+) \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE
    )
    documented = {
        name: (kind, unit, tuple(re.findall(r"`(\w+)`", labels)), help) for name, kind, unit, labels, help in rows
    }
    assert documented == {row.name: (row.kind, row.unit, row.labels, row.help) for row in exposition.TABLE} | {
        name: (kind, unit, labels, help) for name, kind, unit, labels, help in language_exposition.TABLE
    }
    for name in (*exposition.PROCESS_METRICS, *exposition.OUTCOMES, *RELEASES):
        assert f"`{name}`" in DOCS.read_text()


def test_what_is_written_is_what_the_table_says() -> None:
    metrics = Metrics({"version": "1", "python": "3"})
    fill(metrics.model("iris", 1))
    metrics.model("iris", 1).probes = Probes(workers=lambda: [{"state": "ready"}])
    metrics.listener("http", lambda: ListenerFigures({"2xx": 1}, {"queue_full": 1}, 2))
    metrics.spans = lambda: SpanCounts(1, 2, 3)
    metrics.residency = lambda: ResidencyFigures(1, 2, 3, 4, 5, {"memory": 6, "idle": 7})
    families = parsed(metrics)
    table = {row.name: row for row in exposition.TABLE}
    assert set(families) == set(table) | set(exposition.PROCESS_METRICS)
    for name, row in table.items():
        family = families[name]
        assert family.type == row.kind
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(row.labels)


def test_a_quantile_lies_in_its_bucket() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, (0, 0, 0, 0), 0.5) is None
    assert quantile(bounds, (0, 4, 0, 0), 0.5) == pytest.approx(1.5)
    assert quantile(bounds, (2, 0, 2, 0), 0.75) == pytest.approx(3.0)
    assert quantile(bounds, (1, 1, 1, 97), 0.99) == 4.0
    assert quantile(bounds, (1, 0, 0, 0), math.nan) is None
