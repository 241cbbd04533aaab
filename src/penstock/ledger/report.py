"""What a run showed: figures over its phases and over time, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.ledger import book
from penstock.ledger.book import Entry, Event, Target
from penstock.ledger.checker import Violation, comparable
from penstock.ledger.counters import Counters
from penstock.ledger.schedule import Plan

REFUSALS = (book.QUOTA, book.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of some requests. Latencies in seconds, from when each was due; of none, 0."""

    seconds: float
    sent: int
    outcomes: Counter[str]
    goodput: float  # right answers in time, a second
    p50_s: float
    p99_s: float
    max_s: float
    refusal_p99_s: float
    overdue_p99_s: float  # how long after its deadline a request was told that it is late


@dataclass(frozen=True, slots=True)
class Memory:
    """The server's processes at one moment."""

    at: float
    rss_bytes: int
    processes: int


@dataclass(slots=True)
class Report:
    """A finished run."""

    target: Target
    plan: Plan
    entries: list[Entry]
    violations: list[Violation]
    events: list[Event]
    told_apart: float  # the share of pairs of payloads whose answers differ: how likely a crossed answer is seen
    lag_p99_s: float  # how late the generator itself was
    before: Counters | None = None
    after: Counters | None = None
    memory: list[Memory] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no rule was broken."""
        return not self.violations

    @property
    def on_time(self) -> bool:
        """Whether the generator kept its schedule well enough to judge whether the server did."""
        return self.lag_p99_s <= self.plan.slack_s

    @property
    def not_judged(self) -> dict[str, str]:
        """The rules that could not be judged, with the reason."""
        reasons = {}
        if not self.on_time:
            reasons["late"] = "the generator itself was too late for this load"
        if not self.told_apart:
            reasons["crossed"] = "all requests have the same answer"
        if self.before is None or self.after is None:
            reasons["miscounted"] = "the server offers no counters that are understood"
        elif not comparable(self.before, self.after):
            reasons["miscounted"] = "another process counts now than at first"
        return reasons

    def summary(self, phase: int | None = None) -> Summary:
        """Figures of one phase, or of the whole run."""
        if phase is None:
            return summarise(self.entries, self.plan.seconds)
        return summarise((one for one in self.entries if one.phase == phase), self.plan.phases[phase].seconds)

    def over_time(self, width_s: float) -> list[Summary]:
        """Figures of the requests that were due in each `width_s` of the run."""
        buckets: list[list[Entry]] = [[] for _ in range(int(-(-self.plan.seconds // width_s)))]
        for entry in self.entries:
            buckets[min(int(entry.scheduled // width_s), len(buckets) - 1)].append(entry)
        return [summarise(bucket, width_s) for bucket in buckets]


def summarise(entries: Iterable[Entry], seconds: float) -> Summary:
    """The figures of some requests that were due within `seconds`."""
    outcomes: Counter[str] = Counter()
    right: list[float] = []
    refused: list[float] = []
    overdue: list[float] = []
    good = 0
    for entry in entries:
        outcomes[str(entry.outcome)] += 1
        if entry.outcome == book.OK:
            right.append(entry.latency_s)
            good += not entry.crossed and entry.latency_s <= entry.deadline_s
        elif entry.outcome in REFUSALS:
            refused.append(entry.latency_s)
        elif entry.outcome == book.DEADLINE:
            overdue.append(entry.latency_s - entry.deadline_s)
    right.sort()
    return Summary(
        seconds,
        outcomes.total(),
        outcomes,
        good / seconds,
        percentile(right, 0.5),
        percentile(right, 0.99),
        right[-1] if right else 0.0,
        percentile(sorted(refused), 0.99),
        percentile(sorted(overdue), 0.99),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values; `share` from 0 to 1. 0 of none."""
    if not ordered:
        return 0.0
    rank = max(1, -int(-share * len(ordered) // 1))
    return ordered[min(rank, len(ordered)) - 1]
