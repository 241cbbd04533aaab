"""Counts of everything that happens in one process, cheap enough to be always on.

Theory of operation. A whole HTTP request costs about 20 µs here and telemetry may take 2 % of that, so recording lays
two floats of each request, which are there already, at the end of a list, and what its batch shares at the end of
another. When they are long, or somebody asks, numpy folds them into the sums of `telemetry.statistics`. Nothing is lost
between, because every reader folds first.

All methods are called on the event loop's thread; only `exposition.text` may run elsewhere, as it works on copies.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from penstock.core.door import Statistics
from penstock.core.messages import Timings
from penstock.telemetry.spans import SpanCounts
from penstock.telemetry.statistics import OTHER_RELEASE, RELEASES, Sums

if TYPE_CHECKING:
    from penstock.telemetry.language import LanguageSums, Spoken

# Floats kept before they are folded: 512 requests. Fewer, and numpy's fixed cost per call shows; more, and an idle
# server of 1,000 models holds memory for nothing (100 KB each). Source: bench/telemetry_cost.py.
FOLD_REQUESTS = 512
_REQUEST_FIELDS = 6  # of `Sums.add_requests`
_ANSWER_FIELDS = 7  # requests, their rows, dispatched, finished, input, infer, output
_CAME_FIELDS = 2  # received, submitted
_BATCH_FIELDS = 8
_CAME_FULL = FOLD_REQUESTS * _CAME_FIELDS
_BATCH_FULL = FOLD_REQUESTS * _BATCH_FIELDS


def _none() -> int:
    return 0


def _no_workers() -> list[dict[str, object]]:
    return []


@dataclass(frozen=True, slots=True)
class Probes:
    """What is asked of a model version's owner when somebody looks.

    A worker is a dict of JSON-able values: `pid`, `device`, `state` ("ready" when it takes batches), `restarts`,
    `rss_bytes`; its place in the list is its index in the pool. `batches` is filled in here.
    """

    in_flight: Callable[[], int] = _none
    queued: Callable[[], int] = _none
    workers: Callable[[], Sequence[Mapping[str, object]]] = _no_workers
    executor: str = ""


@dataclass(slots=True)
class ListenerFigures:
    """What one kind of listener counted since the start, over all fronts. `refused` by `core.errors` reason, or the
    listener's own: "connections", "header_timeout", "body_timeout", "malformed"."""

    responses: Mapping[str, int] = field(default_factory=dict)  # by class: "2xx"
    refused: Mapping[str, int] = field(default_factory=dict)
    open_connections: int = 0


@dataclass(frozen=True, slots=True)
class ResidencyFigures:
    """Of models that share less memory than they take: how many are in it, and how often they come and go."""

    resident: int
    resident_bytes: int
    budget_bytes: int  # 0: no limit
    loads: int  # because a request asked
    failures: int
    evictions: Mapping[str, int]  # by cause


@dataclass(slots=True)
class ModelSnapshot:
    """A copy of one model version's figures at one moment."""

    name: str
    version: str
    sums: Sums
    in_flight: int
    queued: int
    workers: list[dict[str, object]]
    language: LanguageSums | None = None  # of a language model
    waiting: int = 0  # of such: before the queue


@dataclass(slots=True)
class Snapshot:
    """A copy of everything at one moment, to be written out anywhere."""

    models: list[ModelSnapshot]
    listeners: dict[str, ListenerFigures]
    build: dict[str, str]
    spans: SpanCounts | None = None  # None: spans are not switched on
    residency: ResidencyFigures | None = None  # None: all models stay in memory


class ModelMetrics:
    """The figures of one model version; what a batcher reports to."""

    __slots__ = ("_answers", "_batches", "_came", "_finished", "_sums", "language", "name", "probes", "version")

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.probes = Probes()
        self.language: LanguageSums | None = None  # set by the owner of a language model
        self._sums = Sums()
        self._answers: list[float] = []
        self._came: list[float] = []
        self._batches: list[float] = []
        self._finished = 0.0  # monotonic, of the last success

    @property
    def last_finished(self) -> float:
        """When the last success was answered, on the monotonic clock; 0 before the first."""
        return self._finished

    def record(self, timings: Timings, rows: int) -> None:
        """Takes one answered request of `rows` rows. The timings are read now and not kept."""
        self.record_answers((timings,), rows)

    def record_answers(self, answered: Sequence[Timings], rows: int) -> None:
        """Takes the answered requests of one batch, of `rows` rows together: all but when they came is the same."""
        first = answered[0]
        self._finished = first.finished
        self._answers += (
            len(answered),
            rows,
            first.dispatched,
            first.finished,
            first.compute_input_s,
            first.compute_infer_s,
            first.compute_output_s,
        )
        came = self._came
        for timings in answered:
            came.append(timings.received)
            came.append(timings.submitted)
        if len(came) >= _CAME_FULL:
            self.fold()

    def record_batch(
        self,
        rows: int,
        padded_rows: int,
        release: str,
        compute_input_s: float,
        compute_infer_s: float,
        compute_output_s: float,
        worker: int,
        wait_s: float = math.nan,
    ) -> None:
        """Takes one executed batch: its `rows` without padding, the `padded_rows` added, why it was released, the
        place of its worker in the pool, and how long its oldest request waited for it (NaN: not known)."""
        batches = self._batches
        batches += (
            rows,
            padded_rows,
            _RELEASE_PLACE.get(release, OTHER_RELEASE),
            worker,
            compute_input_s,
            compute_infer_s,
            compute_output_s,
            wait_s,
        )
        if len(batches) >= _BATCH_FULL:
            self.fold()

    def record_failure(self, reason: str, seconds: float) -> None:
        """Takes one request that was accepted, lived `seconds` and ended with an error (its `reason`)."""
        self._sums.add_failure(reason, seconds)

    def refused(self, reason: str) -> None:
        """Takes one request that was not let in, for an error's `reason`."""
        self._sums.add_failure(reason, 0.0)

    def fold(self) -> None:
        """Brings the sums up to date."""
        if self._came:
            self._sums.add_requests(self._take_requests())
        if self._batches:
            batches, self._batches = self._batches, []
            self._sums.add_batches(_table(batches, _BATCH_FIELDS))

    def _take_requests(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """What was recorded of requests since the last time, as `Sums.add_requests` wants it."""
        answers, came = _table(self._answers, _ANSWER_FIELDS), _table(self._came, _CAME_FIELDS)
        self._answers, self._came = [], []
        counts = answers[:, 0].astype(np.int64)
        shared = np.repeat(answers, counts, axis=0)
        received, submitted = came.T
        requests = np.empty((len(came), _REQUEST_FIELDS))
        requests[:, 0] = shared[:, 3] - np.where(received > 0.0, received, submitted)
        requests[:, 1] = shared[:, 2] - submitted
        requests[:, 2:5] = shared[:, 4:7]
        requests[:, 5] = 0.0  # rows are only summed: those of a batch stand at its first request
        requests[counts.cumsum() - counts, 5] = answers[:, 1]
        return requests

    def absorb(self, requests: bytes, batches: bytes, failures: Sequence[tuple[str, float]]) -> None:
        """Takes what another process recorded for this version; see `ForwardingMetrics`."""
        if requests:
            self._sums.add_requests(np.frombuffer(requests, dtype=np.float64).reshape(-1, _REQUEST_FIELDS))
            self._finished = time.monotonic()
        if batches:
            self._sums.add_batches(np.frombuffer(batches, dtype=np.float64).reshape(-1, _BATCH_FIELDS))
        for reason, seconds in failures:
            self._sums.add_failure(reason, seconds)

    def sums(self) -> Sums:
        """The figures until now. Owned by this object: read them, or copy."""
        self.fold()
        return self._sums

    def snapshot(self) -> ModelSnapshot:
        """A copy of the figures until now and of what the probes answer."""
        probes = self.probes
        sums = self.sums().copy()
        language = None if self.language is None else self.language.copy()
        return ModelSnapshot(
            self.name, self.version, sums, probes.in_flight(), probes.queued(), self._workers(), language
        )

    def record_spoken(self, spoken: Spoken) -> None:
        """Takes what one request to a language model came to."""
        if self.language is not None:
            self.language.add(spoken)

    def statistics(self) -> Statistics:
        """The figures until now in the V2 statistics extension's terms."""
        statistics = self.sums().statistics(self.name, self.version)
        if self._finished:
            ago_s = time.monotonic() - self._finished
            statistics.last_inference_ms = int((time.time() - ago_s) * 1e3)
        statistics.in_flight = self.probes.in_flight()
        statistics.queued = self.probes.queued()
        statistics.executor = self.probes.executor
        statistics.workers = self._workers()
        return statistics

    def _workers(self) -> list[dict[str, object]]:
        counts = self._sums.by_worker
        return [{"batches": counts.get(i, 0), **worker} for i, worker in enumerate(self.probes.workers())]


Forward = Callable[[bytes, bytes, list[tuple[str, float]]], None]
"""Takes packed requests, packed batches and failures as (reason, seconds), for `ModelMetrics.absorb` elsewhere."""


class ForwardingMetrics(ModelMetrics):
    """Records like ModelMetrics, and hands everything on instead of keeping it. `fold` is to be called now and then."""

    __slots__ = ("_failures", "_forward")

    def __init__(self, name: str, version: str, forward: Forward) -> None:
        super().__init__(name, version)
        self._forward = forward
        self._failures: list[tuple[str, float]] = []

    def record_failure(self, reason: str, seconds: float) -> None:
        """See `ModelMetrics.record_failure`."""
        self._failures.append((reason, seconds))
        if len(self._failures) >= FOLD_REQUESTS:
            self.fold()

    def refused(self, reason: str) -> None:
        """See `ModelMetrics.refused`."""
        self.record_failure(reason, 0.0)

    def fold(self) -> None:
        """Hands on what was recorded since the last time."""
        if self._came or self._batches or self._failures:
            requests = self._take_requests().tobytes() if self._came else b""
            batches, failures = self._batches, self._failures
            self._batches, self._failures = [], []
            self._forward(requests, _packed(batches), failures)


class Metrics:
    """The figures of one process: its model versions, its listeners and the process itself."""

    def __init__(self, build: Mapping[str, str] | None = None) -> None:
        self._build = dict(build or {})  # labels of penstock_build_info: version, python, …
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._listeners: dict[str, Callable[[], ListenerFigures]] = {}
        self.spans: Callable[[], SpanCounts | None] = lambda: None
        self.residency: Callable[[], ResidencyFigures | None] = lambda: None

    def model(self, name: str, version: str | int) -> ModelMetrics:
        """The figures of one model version, made at the first call."""
        key = (name, str(version))
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = ModelMetrics(*key)
        return found

    def forget(self, name: str, version: str | int) -> None:
        """Drops a version that was unloaded: its series end and its memory is given back."""
        self._models.pop((name, str(version)), None)

    def listener(self, kind: str, figures: Callable[[], ListenerFigures]) -> None:
        """Names the owner of one kind of listener's figures: "http" or "grpc"."""
        self._listeners[kind] = figures

    def __iter__(self) -> Iterator[ModelMetrics]:
        """Every model version that is known, in order of name and version."""
        return iter([self._models[key] for key in sorted(self._models)])

    def snapshot(self) -> Snapshot:
        """A copy of everything, for `exposition.text`."""
        return Snapshot(
            models=[model.snapshot() for model in self],
            listeners={kind: figures() for kind, figures in sorted(self._listeners.items())},
            build=dict(self._build),
            spans=self.spans(),
            residency=self.residency(),
        )


_RELEASE_PLACE = {release: place for place, release in enumerate(RELEASES)}


def _table(floats: list[float], fields: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.frombuffer(_packed(floats), dtype=np.float64).reshape(-1, fields)


def _packed(floats: list[float]) -> bytes:
    # Packing is three times as fast as numpy's own reading of a list, which asks each element for its type.
    return struct.pack(f"{len(floats)}d", *floats)
