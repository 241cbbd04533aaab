"""What one request to a language model came to, for the metrics. Passed on to the process that owns the models."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from penstock.core.language import EngineLoad
from penstock.telemetry.language import GAP_BOUNDS_S


class Spoken(msgspec.Struct, frozen=True, array_like=True):
    """One request, ended. Durations in seconds; -1 is not reached. `gaps` are counts of the times between tokens, one
    for each of `GAP_BOUNDS_S` and one above all."""

    model: str
    version: str
    caller: str
    outcome: str  # "stop", "length", "tool_calls", or an error's reason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_s: float
    first_token_s: float
    total_s: float
    gaps: list[int]
    gaps_s: float
    load: EngineLoad | None = None


class Gaps:
    """Times between tokens, counted. Several tokens that came at once share the time since the last ones."""

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
