"""What is measured of language models: what each request came to, summed. `language_exposition` writes it.

Bounds are vLLM's, so that dashboards made for it show the same. Source: vLLM, vllm/v1/metrics/loggers.py.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate

import msgspec

from penstock.core.language import EngineLoad

FIRST_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
GAP_BOUNDS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
WHOLE_BOUNDS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip

MOST_CALLERS = 64  # with series of their own, for each version; the others are summed as "other"
_REASONS = ("stop", "length", "tool_calls", "content_filter")


class Spoken(msgspec.Struct, frozen=True, array_like=True):
    """One request, ended. Durations in seconds; -1 is not reached. `gaps` are counts of the times between tokens, one
    for each of `GAP_BOUNDS_S` and one above all; `gaps_s` their sum."""

    model: str
    version: str
    caller: str
    outcome: str  # a FinishReason, or an error's reason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_s: float
    first_token_s: float
    total_s: float
    gaps: list[int]
    gaps_s: float
    load: EngineLoad | None = None


class Durations:
    """Counts by bucket, and the sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        place = next((at for at, bound in enumerate(self.bounds) if seconds <= bound), len(self.bounds))
        self.counts[place] += 1
        self.sum_s += seconds

    def add_counts(self, counts: list[int], sum_s: float) -> None:
        if len(counts) == len(self.counts):
            self.counts = [one + other for one, other in zip(self.counts, counts, strict=True)]
            self.sum_s += sum_s

    def buckets(self) -> list[tuple[str, float]]:
        texts = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(texts, map(float, accumulate(self.counts)), strict=True))


@dataclass(slots=True)
class LanguageSums:
    """One version's, since it was loaded."""

    first: Durations = field(default_factory=lambda: Durations(FIRST_BOUNDS_S))
    gaps: Durations = field(default_factory=lambda: Durations(GAP_BOUNDS_S))
    per_token: Durations = field(default_factory=lambda: Durations(GAP_BOUNDS_S))
    whole: Durations = field(default_factory=lambda: Durations(WHOLE_BOUNDS_S))
    queue: Durations = field(default_factory=lambda: Durations(WHOLE_BOUNDS_S))
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    callers: dict[str, list[int]] = field(default_factory=dict)  # requests, prompt tokens, generated tokens
    load: EngineLoad = EngineLoad()  # noqa: RUF009  # frozen

    def add(self, spoken: Spoken) -> None:
        """Takes one request."""
        self.prompt_tokens += spoken.prompt_tokens
        self.generation_tokens += spoken.completion_tokens
        self.cached_tokens += spoken.cached_tokens
        if spoken.first_token_s >= 0:
            self.first.add(spoken.first_token_s)
            self.queue.add(spoken.queue_s)
            self.gaps.add_counts(spoken.gaps, spoken.gaps_s)
        if spoken.outcome in self.finished:
            self.finished[spoken.outcome] += 1
            self.whole.add(spoken.total_s)
            if spoken.completion_tokens > 1:
                self.per_token.add((spoken.total_s - spoken.first_token_s) / (spoken.completion_tokens - 1))
        caller = spoken.caller if spoken.caller in self.callers or len(self.callers) < MOST_CALLERS else "other"
        usage = self.callers.setdefault(caller, [0, 0, 0])
        usage[0] += 1
        usage[1] += spoken.prompt_tokens
        usage[2] += spoken.completion_tokens
        if spoken.load is not None:
            self.load = spoken.load

    def copy(self) -> LanguageSums:
        """An independent copy."""
        return deepcopy(self)


@dataclass(frozen=True, slots=True)
class LanguageSnapshot:
    """One version's sums, with how many of its requests run and wait now."""

    model: str
    version: str
    sums: LanguageSums
    running: int
    waiting: int
