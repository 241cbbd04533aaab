"""A histogram that takes its observations many at a time, and the bucket bounds of every duration we measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Bounds in seconds. They reach from 200 µs (a small model on an idle server) to 10 s (six times less than the default
# deadline; above it "too slow" is all there is to say). A model may have 60 series, all of them included, so the
# resolution is spent where it is asked for: on the whole request, around 1 to 250 ms, where service objectives lie. Its
# parts get one bucket per decade, enough to see which part is to blame.
TOTAL_BOUNDS_S = (200e-6, 1e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0, 10.0)
PART_BOUNDS_S = (500e-6, 5e-3, 50e-3, 500e-3, 5.0)
# A delay asked for is 1 to 50 ms in practice: below nothing was waited for, above it is queueing.
BATCH_WAIT_BOUNDS_S = (1e-3, 50e-3)
# Rows of a batch. 64 is the default limit; the statistics have the exact sizes.
ROW_BOUNDS = (1, 4, 16, 64)


@dataclass(slots=True)
class Histogram:
    """Counts per bucket and the exact sum. `bounds` are upper bounds, inclusive, ascending, in seconds."""

    bounds: tuple[float, ...]
    counts: npt.NDArray[np.int64] = field(init=False)  # (len(bounds) + 1,), the last is above every bound
    sum_ns: int = 0
    _bounds_ns: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.bounds) + 1, dtype=np.int64)
        self._bounds_ns = np.round(np.asarray(self.bounds) * 1e9).astype(np.int64)

    @property
    def count(self) -> int:
        """How many observations there were."""
        return int(self.counts.sum())

    def add(self, values_ns: npt.NDArray[np.int64]) -> None:
        """Takes any number of observations, in nanoseconds."""
        places = np.searchsorted(self._bounds_ns, values_ns, side="left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.sum_ns += int(values_ns.sum())

    def copy(self) -> Histogram:
        """An independent copy."""
        other = Histogram(self.bounds)
        other.counts[:] = self.counts
        other.sum_ns = self.sum_ns
        return other

    def quantile_s(self, q: float) -> float | None:
        """The estimated `q`-quantile in seconds; see `quantile`."""
        return quantile(self.bounds, self.counts.tolist(), q)


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The `q`-quantile (0 to 1) of a histogram, linear inside its bucket; None of an empty one.

    `counts` has one more element than `bounds`: the observations above the last bound, whose quantiles are answered
    with that bound. Source: the rule of PromQL's `histogram_quantile`, so that dashboards show the same figure.
    """
    total = sum(counts)
    if not total or not bounds or math.isnan(q):
        return None
    rank = min(max(q, 0.0), 1.0) * total
    below = 0
    lower = 0.0
    for upper, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return min(upper, lower + (upper - lower) * max(0.0, rank - below) / count)  # rounding may pass it
        below += count
        lower = upper
    return float(bounds[-1])
