"""What the latency histogram of an arm tells. Bounds are those of `state.LATENCY_BOUNDS_S`."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from penstock.fleet.state import LATENCY_BOUNDS_S


def quantile_s(latency: Sequence[int], share: float) -> float | None:
    """The smallest bound that at least `share` of the answers kept; infinity beyond the last; None without answers."""
    total = sum(latency)
    if not total:
        return None
    wanted = share * total
    for bucket, upto in enumerate(itertools.accumulate(latency)):
        if upto >= wanted:
            return LATENCY_BOUNDS_S[bucket] if bucket < len(LATENCY_BOUNDS_S) else math.inf
    return math.inf


def bound_of(limit_s: float) -> int | None:
    """The index of the smallest bound that is not below `limit_s`; None beyond the last."""
    index = bisect.bisect_left(LATENCY_BOUNDS_S, limit_s * (1 - 1e-9))
    return index if index < len(LATENCY_BOUNDS_S) else None


def slower(latency: Sequence[int], bound: int) -> int:
    """How many answers took longer than the bound of this index."""
    return sum(latency[bound + 1 :])
