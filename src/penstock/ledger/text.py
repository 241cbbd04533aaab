"""A report as lines of text and as JSON."""

from __future__ import annotations

from penstock.ledger.report import Report, Summary

# What rules there are, in the order in which the report names them.
RULES = {
    "lost": "every request has an outcome",
    "doubled": "none has two",
    "crossed": "every answer is its own request's",
    "late": "nothing is answered after its deadline, except with that it is late",
    "untruthful": "no outcome but those that are allowed",
    "miscounted": "the server counts what its callers saw",
    "useless": "some get the right answer",
    "unsent": "the generator sends each",
    "harmless": "each fault finds its process",
}


def row(name: str, summary: Summary, rate: float | None) -> dict[str, object]:
    """One row of the table of phases. Times in milliseconds."""
    return {
        "phase": name,
        "rate": "" if rate is None else f"{rate:,.0f}/s for {summary.seconds:g} s",
        "sent": f"{summary.sent:,}",
        "right in time": f"{summary.goodput:,.0f}/s",
        "p50 ms": f"{summary.p50_s * 1e3:.1f}",
        "p99 ms": f"{summary.p99_s * 1e3:.1f}",
        "max ms": f"{summary.max_s * 1e3:.1f}",
        "refused p99 ms": f"{summary.refusal_p99_s * 1e3:.1f}" if summary.refusal_p99_s else "",
        "outcomes": " ".join(f"{outcome}={count:,}" for outcome, count in summary.outcomes.most_common()),
    }


def rows(report: Report) -> list[dict[str, object]]:
    """The table of phases, with the whole run last where it has several."""
    phases = report.plan.phases
    table = [row(str(index + 1), report.summary(index), phase.rate) for index, phase in enumerate(phases)]
    return table if len(phases) == 1 else [*table, row("all", report.summary(), None)]


def verdict(report: Report) -> list[str]:
    """What was judged, one line each; the last line is the verdict."""
    broken = {violation.kind: violation for violation in report.violations}
    lines = []
    for kind, rule in RULES.items():
        if kind in report.not_judged:
            lines.append(f"--      {rule}: not judged, {report.not_judged[kind]}")
        elif kind in broken:
            lines.append(f"BROKEN  {rule}: {broken[kind]}")
        else:
            lines.append(f"ok      {rule}{told_apart(report) if kind == 'crossed' else ''}")
    lines += [f"        {event.at:.2f} s: {event.what}" for event in report.events]
    if report.memory:
        first, last = report.memory[0], report.memory[-1]
        lines.append(
            f"        memory of the server's processes: {first.rss_bytes / 2**20:,.0f} MiB in {first.processes} at "
            f"first, {last.rss_bytes / 2**20:,.0f} MiB in {last.processes} at last"
        )
    lines.append(f"        the generator was {report.lag_p99_s * 1e3:.1f} ms late (p99)")
    count = sum(violation.count for violation in report.violations)
    lines.append("PASSED" if report.passed else f"FAILED  {count:,} times in {len(broken)} rules")
    return lines


def told_apart(report: Report) -> str:
    """How likely a crossed answer would have been seen, in words."""
    return f" ({report.told_apart:.0%} of pairs of inputs have different answers)"


def as_json(report: Report) -> dict[str, object]:
    """The report without its entries. Times in seconds."""
    return {
        "model": report.target.model,
        "url": report.target.url,
        "passed": report.passed,
        "violations": [{"kind": one.kind, "count": one.count, "example": one.example} for one in report.violations],
        "not_judged": report.not_judged,
        "phases": [
            {"rate": phase.rate, **_figures(report.summary(index))} for index, phase in enumerate(report.plan.phases)
        ],
        "events": [{"at_s": event.at, "what": event.what} for event in report.events],
        "generator_lag_p99_s": report.lag_p99_s,
        "told_apart": report.told_apart,
        "deadline_s": report.plan.deadline_s,
    }


def _figures(summary: Summary) -> dict[str, object]:
    return {
        "seconds": summary.seconds,
        "sent": summary.sent,
        "outcomes": dict(summary.outcomes),
        "goodput": summary.goodput,
        "p50_s": summary.p50_s,
        "p99_s": summary.p99_s,
        "max_s": summary.max_s,
        "refusal_p99_s": summary.refusal_p99_s,
        "overdue_p99_s": summary.overdue_p99_s,
    }
