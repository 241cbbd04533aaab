"""What one scenario showed of one server, as a value, and how it follows from the ledger's report."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from penstock.ledger import Report
from scenarios.plans import Scenario
from scenarios.watch import Probe

WINDOW_S = 0.25
GOOD_AGAIN = 0.9
# Fewer requests than this in a window say nothing.
MIN_SENT = 3


@dataclass(slots=True)
class Finding:
    """One row. Seconds, requests a second and bytes; None is what does not apply or was not seen."""

    server: str
    scenario: str
    trouble: str = ""  # why it could not be carried out, or what had to be done afterwards
    broken: dict[str, int] = field(default_factory=dict)  # rule → how often
    examples: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    bad_rows: dict[str, int] = field(default_factory=dict)
    capacity: float = 0.0
    offered: float = 0.0
    goodput: float = 0.0
    goodput_share: float | None = None  # of what it could have answered at most
    p50_s: float = 0.0
    p99_s: float = 0.0
    refusal_p99_s: float | None = None
    back_s: float | None = None  # until right answers in time are 90 % again, for good
    back: bool | None = None
    exit_s: float | None = None  # from SIGTERM to the end of its main process
    exit_status: int | None = None
    unready_s: float | None = None  # from SIGTERM to the first answer that it is not ready
    orphans: int | None = None
    ports_held: int | None = None
    memory_left: int | None = None  # named pieces of shared memory
    grown_bytes: int | None = None
    false_ready_s: dict[str, float] = field(default_factory=dict)  # endpoint → said ready, and nothing was answered
    live_max_s: float | None = None
    counted_by: str = ""
    generator_late_p99_s: float = 0.0
    generator_on_time: bool = True  # else "late" is not judged
    events: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def take_report(finding: Finding, report: Report, scenario: Scenario) -> None:
    """Puts the ledger's figures into the finding."""
    finding.broken = {one.kind: one.count for one in report.violations}
    finding.examples = {one.kind: one.example for one in report.violations}
    finding.outcomes = dict(report.summary().outcomes.most_common())
    judged = report.summary(scenario.judged)
    finding.offered = judged.sent / judged.seconds
    finding.goodput, finding.p50_s, finding.p99_s = judged.goodput, judged.p50_s, judged.p99_s
    stayed = finding.offered * (1 - judged.outcomes["left"] / max(1, judged.sent))
    possible = min(finding.capacity, stayed)
    finding.goodput_share = judged.goodput / possible if possible else None
    refused = any(judged.outcomes[outcome] for outcome in ("quota", "unavailable"))
    finding.refusal_p99_s = judged.refusal_p99_s if refused else None
    finding.counted_by = report.before.source if report.before is not None else ""
    finding.generator_late_p99_s, finding.generator_on_time = report.lag_p99_s, report.on_time
    finding.events += [f"{event.at:.2f} s: {event.what}" for event in report.events]
    if len(report.memory) > 1 and not scenario.fault:
        finding.grown_bytes = report.memory[-1].rss_bytes - report.memory[0].rss_bytes
    if scenario.back is not None:
        begins = sum(phase.seconds for phase in report.plan.phases[: scenario.back])
        finding.back_s = back_after(good_shares(report), begins)
        finding.back = finding.back_s is not None


def good_shares(report: Report) -> list[float | None]:
    """For each window, the share of right answers in time among the requests due in it whose callers stayed. None is
    too few to say."""
    shares: list[float | None] = []
    for window in report.over_time(WINDOW_S):
        stayed = window.sent - window.outcomes["left"]
        shares.append(window.goodput * WINDOW_S / stayed if stayed >= MIN_SENT else None)
    return shares


def back_after(shares: list[float | None], begins: float) -> float | None:
    """Seconds from `begins` to the end of the last bad window; None when the last one is still bad."""
    last_bad = None
    known = [index for index, share in enumerate(shares) if share is not None]
    for index in known:
        if index * WINDOW_S >= begins - WINDOW_S / 2 and (shares[index] or 0.0) < GOOD_AGAIN:
            last_bad = index
    if last_bad is None:
        return 0.0
    if last_bad == known[-1]:
        return None
    return (last_bad + 1) * WINDOW_S - begins


def false_ready_s(shares: list[float | None], probes: list[Probe], begins: float) -> float:
    """For how long, from `begins`, an endpoint said ready in windows in which no request got a right answer."""
    told: dict[int, Counter[bool]] = {}
    for one in probes:
        told.setdefault(int((one.at + one.took_s) // WINDOW_S), Counter())[one.status == 200] += 1
    windows = [
        index
        for index, share in enumerate(shares)
        if share == 0 and index * WINDOW_S >= begins and told.get(index) and not told[index][False]
    ]
    return len(windows) * WINDOW_S
