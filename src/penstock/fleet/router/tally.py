"""What one revision answered through this router. Kept for ever as sums, and handed on as what was gained."""

from __future__ import annotations

from bisect import bisect_left

from penstock.fleet.state import LATENCY_BOUNDS_S, ArmStatistics


class Tally:
    """Of one lane. `by_status` counts answers by the first digit of the status; 0 are those lost with their replica."""

    __slots__ = ("_errors", "_latency", "_requests", "by_status", "latency_sum_s", "retries")

    def __init__(self) -> None:
        self.by_status = [0] * 6
        self.latency_sum_s = 0.0
        self.retries = 0
        self._requests = 0
        self._errors = 0
        self._latency = [0] * (len(LATENCY_BOUNDS_S) + 1)

    def add(self, status: int, latency_s: float, *, counted: bool = True) -> None:
        """Counts one answer. `status` as over HTTP; 0: the replica was lost. `counted`: in the experiment's statistics
        too, which judge models: questions about one (its metadata, whether it is ready) tell nothing there."""
        self.by_status[status // 100] += 1
        self.latency_sum_s += latency_s
        if not counted:
            return
        self._requests += 1
        if 0 < status < 500:
            self._latency[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1
        else:
            self._errors += 1

    def take(self) -> ArmStatistics | None:
        """What was gained since the last call; None when it is nothing."""
        if not self._requests:
            return None
        gained = ArmStatistics(self._requests, self._errors, tuple(self._latency))
        self._requests = self._errors = 0
        self._latency = [0] * (len(LATENCY_BOUNDS_S) + 1)
        return gained
