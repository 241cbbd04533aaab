"""Times between the tokens of one request, counted while it goes on."""

from __future__ import annotations

from bisect import bisect_left

from penstock.telemetry.language import GAP_BOUNDS_S
from penstock.telemetry.language import Spoken as Spoken


class Gaps:
    """Times between tokens. Several tokens that came at once share the time since the last ones."""

    __slots__ = ("counts", "last", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.last = 0.0

    def add(self, now: float, tokens: int) -> None:
        """Takes the arrival of `tokens`; the first ones begin the count."""
        if self.last and tokens:
            gap = now - self.last
            self.counts[bisect_left(GAP_BOUNDS_S, gap / tokens)] += tokens
            self.sum_s += gap
        self.last = now

    def join(self, other: Gaps) -> None:
        """Takes what another one has counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s
