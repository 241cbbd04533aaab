"""A snapshot of the figures as Prometheus text. Every metric stands once in `TABLE`; docs/metrics.md is checked by it.

Series are bounded: 60 for each loaded model version, 200 for the rest, whatever clients, paths, tenants and restarts
there are. No label holds a process id, a path or anything else that a caller chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from penstock.telemetry import language_exposition
from penstock.telemetry.histogram import ROW_BOUNDS, Histogram
from penstock.telemetry.language import LanguageSnapshot
from penstock.telemetry.metrics import ListenerFigures, ModelSnapshot, ResidencyFigures, Snapshot
from penstock.telemetry.statistics import OTHER_OUTCOME, OUTCOME_OF, RELEASES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Worker processes with series of their own, over all models; the others are summed in one `worker="rest"`.
WORKER_SERIES = 24
# Reasons with a series of their own, per listener: `core.errors` has 17 and listeners a few more.
REASON_SERIES = 24

OUTCOMES = ("success", *dict.fromkeys(OUTCOME_OF.values()), OTHER_OUTCOME)
_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_MODEL = ("model", "version")
_WORKER = (*_MODEL, "worker")


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: its name, type, unit, labels and meaning."""

    name: str
    kind: str  # "counter", "gauge" or "histogram"
    unit: str
    labels: tuple[str, ...]
    help: str


TABLE = (
    Row("penstock_requests_total", "counter", "requests", (*_MODEL, "outcome"), "Requests ended, by how they ended"),
    Row("penstock_request_seconds", "histogram", "seconds", _MODEL,
        "From the whole request read to its answer made, of successful requests"),
    Row("penstock_queue_seconds", "histogram", "seconds", _MODEL,
        "From entering the queue to being handed to a worker, of successful requests"),
    Row("penstock_compute_seconds", "histogram", "seconds", _MODEL,
        "Inside the model, for the request's whole batch, of successful requests"),
    Row("penstock_batch_wait_seconds", "histogram", "seconds", _MODEL,
        "How long the oldest request of a batch waited until the batch was closed"),
    Row("penstock_rows_total", "counter", "rows", _MODEL, "Rows answered"),
    Row("penstock_pad_rows_total", "counter", "rows", _MODEL, "Rows added to reach an allowed batch size"),
    Row("penstock_batch_rows", "histogram", "rows", _MODEL, "Rows of a batch, without those added"),
    Row("penstock_batches_total", "counter", "batches", (*_MODEL, "release"), "Batches run, by why they were closed"),
    Row("penstock_requests_in_flight", "gauge", "requests", _MODEL, "Requests accepted and not yet answered"),
    Row("penstock_requests_queued", "gauge", "requests", _MODEL, "Requests waiting for a worker"),
    Row("penstock_worker_ready", "gauge", "1", _WORKER, "1 when the worker takes batches"),
    Row("penstock_worker_batches_total", "counter", "batches", _WORKER, "Batches run at this place in the pool"),
    Row("penstock_worker_restarts_total", "counter", "restarts", _WORKER, "Times the worker here was replaced"),
    Row("penstock_worker_resident_memory_bytes", "gauge", "bytes", _WORKER, "Memory of the worker process"),
    Row("penstock_responses_total", "counter", "responses", ("listener", "class"), "Answers sent, by class of status"),
    Row("penstock_refused_total", "counter", "requests", ("listener", "reason"), "Requests and connections refused"),
    Row("penstock_connections_open", "gauge", "connections", ("listener",), "Open connections"),
    Row("penstock_traced_requests_total", "counter", "requests", ("outcome",),
        "Requests with spans, by what became of these"),
    Row("penstock_models_resident", "gauge", "models", (), "Model versions in memory; the others load when asked for"),
    Row("penstock_models_resident_bytes", "gauge", "bytes", (), "Memory of those, as measured when they were loaded"),
    Row("penstock_models_budget_bytes", "gauge", "bytes", (), "Memory that they may have together"),
    Row("penstock_model_wakes_total", "counter", "loads", ("outcome",), "Models loaded again because a request came"),
    Row("penstock_model_evictions_total", "counter", "models", ("cause",), "Models that gave their memory back"),
    Row("penstock_build_info", "gauge", "1", ("version", "python"), "What is running; always 1"),
)  # fmt: skip

# Made by prometheus_client for the front's own process, under the names every client library uses.
PROCESS_METRICS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
)


def text(snapshot: Snapshot) -> bytes:
    """The snapshot in Prometheus's text format, version 0.0.4. Works on any thread."""
    return generate_latest(_Collector(snapshot))


class _Collector:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._families: dict[str, Metric] = {row.name: _family(row) for row in TABLE}

    def collect(self) -> Iterable[Metric]:
        for model in self._snapshot.models:
            self._add_model(model)
        self._add_workers(self._snapshot.models)
        for kind, figures in self._snapshot.listeners.items():
            self._add_listener(kind, figures)
        if (spans := self._snapshot.spans) is not None:
            for outcome in ("exported", "dropped", "failed"):
                self._add("penstock_traced_requests_total", (outcome,), getattr(spans, outcome))
        if (residency := self._snapshot.residency) is not None:
            self._add_residency(residency)
        build = self._snapshot.build
        self._add("penstock_build_info", (build.get("version", ""), build.get("python", "")), 1)
        yield from (family for family in self._families.values() if family.samples)
        yield from language_exposition.families(
            LanguageSnapshot(
                model.name, model.version, model.language, max(0, model.in_flight - model.queued),
                model.queued + model.waiting,
            )
            for model in self._snapshot.models
            if model.language is not None
        )  # fmt: skip
        yield from ProcessCollector(registry=None).collect()

    def _add_residency(self, figures: ResidencyFigures) -> None:
        self._add("penstock_models_resident", (), figures.resident)
        self._add("penstock_models_resident_bytes", (), figures.resident_bytes)
        if figures.budget_bytes:
            self._add("penstock_models_budget_bytes", (), figures.budget_bytes)
        self._add("penstock_model_wakes_total", ("success",), figures.loads)
        self._add("penstock_model_wakes_total", ("failure",), figures.failures)
        for cause, count in figures.evictions.items():
            self._add("penstock_model_evictions_total", (cause,), count)

    def _add(self, name: str, labels: tuple[str, ...], value: float) -> None:
        family = self._families[name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)

    def _add_histogram(self, name: str, labels: tuple[str, ...], histogram: Histogram) -> None:
        family = self._families[name]
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, _buckets(histogram.bounds, histogram.counts), histogram.sum_ns / 1e9)

    def _add_model(self, model: ModelSnapshot) -> None:
        key = (model.name, model.version)
        sums = model.sums
        self._add("penstock_requests_total", (*key, "success"), sums.successes)
        for outcome in OUTCOMES[1:]:
            tally = sums.failures.get(outcome)
            self._add("penstock_requests_total", (*key, outcome), tally.count if tally else 0)
        self._add_histogram("penstock_request_seconds", key, sums.total)
        self._add_histogram("penstock_queue_seconds", key, sums.queue)
        self._add_histogram("penstock_compute_seconds", key, sums.compute)
        self._add_histogram("penstock_batch_wait_seconds", key, sums.batch_wait)
        rows = self._families["penstock_batch_rows"]
        assert isinstance(rows, HistogramMetricFamily)
        rows.add_metric(key, _buckets(ROW_BOUNDS, sums.by_rows), sums.batch_rows)
        self._add("penstock_rows_total", key, sums.rows)
        self._add("penstock_pad_rows_total", key, sums.pad_rows)
        for release, count in zip(RELEASES, sums.releases.tolist(), strict=True):
            self._add("penstock_batches_total", (*key, release), count)
        self._add("penstock_requests_in_flight", key, model.in_flight)
        self._add("penstock_requests_queued", key, model.queued)

    def _add_workers(self, models: Iterable[ModelSnapshot]) -> None:
        rest = [0.0, 0.0, 0.0, 0.0]
        crowded = False
        for place, (labels, values) in enumerate(_workers(models)):
            if place < WORKER_SERIES:
                self._add_worker(labels, values)
            else:
                crowded = True
                rest = [a + b for a, b in zip(rest, values, strict=True)]
        if crowded:
            self._add_worker(("", "", "rest"), rest)

    def _add_worker(self, labels: tuple[str, ...], values: Iterable[float]) -> None:
        names = ("ready", "batches_total", "restarts_total", "resident_memory_bytes")
        for name, value in zip(names, values, strict=True):
            self._add(f"penstock_worker_{name}", labels, value)

    def _add_listener(self, kind: str, figures: ListenerFigures) -> None:
        for code in _CLASSES:
            self._add("penstock_responses_total", (kind, code), figures.responses.get(code, 0))
        for reason, count in _bounded(figures.refused, REASON_SERIES).items():
            self._add("penstock_refused_total", (kind, reason), count)
        self._add("penstock_connections_open", (kind,), figures.open_connections)


def _buckets(bounds: Sequence[float], counts: npt.NDArray[np.int64]) -> list[tuple[str, int]]:
    texts = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return list(zip(texts, accumulate(counts.tolist()), strict=True))


def _family(row: Row) -> Metric:
    if row.kind == "counter":
        return CounterMetricFamily(row.name, row.help, labels=row.labels)
    if row.kind == "gauge":
        return GaugeMetricFamily(row.name, row.help, labels=row.labels)
    return HistogramMetricFamily(row.name, row.help, labels=row.labels)


def _workers(models: Iterable[ModelSnapshot]) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    for model in models:
        for place, worker in enumerate(model.workers):
            values = [
                float(worker.get("state") == "ready"),
                _number(worker.get("batches")),
                _number(worker.get("restarts")),
                _number(worker.get("rss_bytes")),
            ]
            yield (model.name, model.version, str(place)), values


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _bounded(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """At most `most` + 1 of the counts: the first by name, and the sum of the others as "other"."""
    names = sorted(counts)
    kept = {name: counts[name] for name in names[:most]}
    if len(names) > most:
        kept["other"] = kept.get("other", 0) + sum(counts[name] for name in names[most:])
    return kept
