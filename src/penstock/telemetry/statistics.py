"""The sums of one model version. Metrics and V2 statistics are both read off them, so they cannot disagree."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from penstock.core.door import BatchTally, Statistics, Tally
from penstock.telemetry.histogram import BATCH_WAIT_BOUNDS_S, PART_BOUNDS_S, ROW_BOUNDS, TOTAL_BOUNDS_S, Histogram

# Values of the `outcome` label of failed and refused requests, by the errors' `reason`. Coarser than the reasons, as
# each is a series of every model; what a listener refuses before any model is asked is counted there by full reason.
OUTCOME_OF = {
    "invalid": "invalid",
    "too_large": "invalid",
    "unsupported": "invalid",
    "not_found": "invalid",
    "already_exists": "invalid",
    "unauthenticated": "denied",
    "denied": "denied",
    "quota": "denied",
    "queue_full": "queue_full",
    "not_ready": "not_ready",
    "load_failed": "not_ready",
    "worker_lost": "worker_lost",
    "deadline": "deadline",
    "cancelled": "cancelled",
    "model_error": "model_error",
}
OTHER_OUTCOME = "internal"

# Values of the `release` label; see runtime/batching/policy.py for what they mean.
RELEASES = ("full", "idle", "delay", "single", "other")
OTHER_RELEASE = len(RELEASES) - 1

# Most different batch sizes with a line of their own in the statistics; a model without a size limit must not fill
# the memory. Batches of further sizes count in all totals.
BATCH_SIZES = 1024

# Places in a model's pool that are told apart; a bound for arrays, far above any pool's size.
WORKERS = 256

Ns = npt.NDArray[np.int64]


def nanoseconds(seconds: npt.NDArray[np.float64]) -> Ns:
    """Durations as whole nanoseconds, never negative (a point in time that was not reached is 0.0)."""
    return np.maximum(np.rint(seconds * 1e9), 0.0).astype(np.int64)


@dataclass(slots=True)
class Sums:
    """Cumulative figures of one model version."""

    successes: int = 0
    rows: int = 0
    compute_input_ns: int = 0  # these two over requests, as V2 statistics want them
    compute_output_ns: int = 0
    failures: dict[str, Tally] = field(default_factory=dict)  # by outcome
    batches: int = 0
    batch_rows: int = 0
    pad_rows: int = 0
    releases: Ns = field(default_factory=lambda: np.zeros(len(RELEASES), dtype=np.int64))
    by_rows: Ns = field(default_factory=lambda: np.zeros(len(ROW_BOUNDS) + 1, dtype=np.int64))  # batches, as ROW_BOUNDS
    by_size: dict[int, BatchTally] = field(default_factory=dict)
    by_worker: dict[int, int] = field(default_factory=dict)  # batches
    total: Histogram = field(default_factory=lambda: Histogram(TOTAL_BOUNDS_S))
    queue: Histogram = field(default_factory=lambda: Histogram(PART_BOUNDS_S))
    compute: Histogram = field(default_factory=lambda: Histogram(PART_BOUNDS_S))
    batch_wait: Histogram = field(default_factory=lambda: Histogram(BATCH_WAIT_BOUNDS_S))

    def add_requests(self, table: npt.NDArray[np.float64]) -> None:
        """Takes answered requests: rows of (total s, queue s, input s, infer s, output s, rows)."""
        ns = nanoseconds(table[:, :5].T)
        self.successes += len(table)
        self.rows += int(table[:, 5].sum())
        self.total.add(ns[0])
        self.queue.add(ns[1])
        self.compute.add(ns[3])
        self.compute_input_ns += int(ns[2].sum())
        self.compute_output_ns += int(ns[4].sum())

    def add_batches(self, table: npt.NDArray[np.float64]) -> None:
        """Takes executed batches: rows of (rows, pad rows, release, worker, input, infer, output, wait s or NaN)."""
        columns = np.ascontiguousarray(table.T)
        rows, pad_rows, releases, workers = columns[:4].astype(np.int64)
        self.batches += len(table)
        self.batch_rows += int(rows.sum())
        self.pad_rows += int(pad_rows.sum())
        self.by_rows += np.bincount(np.searchsorted(ROW_BOUNDS, rows), minlength=len(ROW_BOUNDS) + 1)
        self.releases += np.bincount(releases, minlength=len(RELEASES))
        waits = columns[7]
        self.batch_wait.add(nanoseconds(waits[~np.isnan(waits)]))
        for worker, count in enumerate(np.bincount(workers.clip(0, WORKERS - 1)).tolist()):
            if count:
                self.by_worker[worker] = self.by_worker.get(worker, 0) + count
        self._add_sizes(rows, nanoseconds(columns[4:7]))

    def _add_sizes(self, rows: Ns, compute_ns: Ns) -> None:
        if int(np.max(rows)) < BATCH_SIZES:  # a bincount is several times as fast as sorting
            counts = np.bincount(rows)
            sizes, which = np.flatnonzero(counts), rows
        else:
            sizes, which = np.unique(rows, return_inverse=True)
            counts = np.bincount(which)
        # Weighted counts are float64: exact below 2**53 ns, 104 days of compute in one fold.
        sums = [np.bincount(which, weights=part) for part in compute_ns]
        places = sizes if which is rows else np.arange(len(sizes))
        for size, place in zip(sizes.tolist(), places.tolist(), strict=True):
            tally = self.by_size.get(size)
            if tally is None:
                if len(self.by_size) >= BATCH_SIZES:
                    continue
                tally = self.by_size[size] = BatchTally()
            for part, ns in zip((tally.compute_input, tally.compute_infer, tally.compute_output), sums, strict=True):
                part.count += int(counts[place])
                part.ns += int(ns[place])

    def add_failure(self, reason: str, seconds: float) -> None:
        """Takes one request that was refused or ended with an error of `core.errors`."""
        outcome = OUTCOME_OF.get(reason, OTHER_OUTCOME)
        tally = self.failures.get(outcome)
        if tally is None:
            tally = self.failures[outcome] = Tally()
        tally.add(max(0.0, seconds))

    def copy(self) -> Sums:
        """A copy to read elsewhere, without the batch sizes (only statistics show them, and they may be many)."""
        return replace(
            self,
            failures={outcome: Tally(tally.count, tally.ns) for outcome, tally in self.failures.items()},
            releases=self.releases.copy(),
            by_rows=self.by_rows.copy(),
            by_size={},
            by_worker=dict(self.by_worker),
            total=self.total.copy(),
            queue=self.queue.copy(),
            compute=self.compute.copy(),
            batch_wait=self.batch_wait.copy(),
        )

    def statistics(self, name: str, version: str) -> Statistics:
        """The figures in the V2 statistics extension's terms; a copy. The caller fills in what only it knows."""
        n = self.successes
        failed = self.failures.values()
        return Statistics(
            name=name,
            version=version,
            inference_count=self.rows,
            execution_count=self.batches,
            success=Tally(n, self.total.sum_ns),
            fail=Tally(sum(tally.count for tally in failed), sum(tally.ns for tally in failed)),
            queue=Tally(n, self.queue.sum_ns),
            compute_input=Tally(n, self.compute_input_ns),
            compute_infer=Tally(n, self.compute.sum_ns),
            compute_output=Tally(n, self.compute_output_ns),
            batches={
                size: BatchTally(
                    *(Tally(part.count, part.ns) for part in (t.compute_input, t.compute_infer, t.compute_output))
                )
                for size, t in sorted(self.by_size.items())
            },
        )
