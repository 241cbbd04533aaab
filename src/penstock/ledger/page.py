"""A report as one HTML page that needs nothing from anywhere: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from penstock.ledger import book, charts, text
from penstock.ledger.charts import Frame
from penstock.ledger.report import Report, Summary, percentile

# Bars and points over a run: enough to see a second of trouble in a minute, few enough for a small page.
_BUCKETS = 120
_MIN_WIDTH_S = 0.1
_SHARES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)
_OUTCOMES = {
    book.OK: "#2a9d5c",
    book.QUOTA: "#b8a200",
    book.UNAVAILABLE: "#e39b22",
    book.DEADLINE: "#7c6fd0",
    book.LEFT: "#8a97a6",
    book.INVALID: "#c76fa8",
    book.ERROR: "#d33f3f",
    book.REFUSED: "#a34a2a",
    book.CUT: "#8b1e3f",
    book.LOST: "#111111",
    book.UNSENT: "#c9c9c9",
}
_LINES = {"p50": "#2a9d5c", "p99": "#e39b22", "max": "#d33f3f", "memory": "#3b74c4"}
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --text: #222; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --back: #17191c; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--back); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .2em .8em .2em 0; border-bottom: 1px solid var(--line); vertical-align: top; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--text); }
svg polyline { fill: none; stroke-width: 1.5; } svg .grid { stroke: var(--line); stroke-width: .5; }
svg .event { stroke: #d33f3f; stroke-dasharray: 4 3; }
.passed { color: #2a9d5c; } .failed { color: #d33f3f; } li.failed { font-weight: 600; }
.key span { display: inline-block; margin-right: 1.2em; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
"""


def render(report: Report, title: str) -> str:
    """The page. Everything that came from the server is escaped."""
    width_s = max(_MIN_WIDTH_S, report.plan.seconds / _BUCKETS)
    over_time = report.over_time(width_s)
    frame = Frame(report.plan.seconds, [(event.at, event.what) for event in report.events])
    present = [name for name in _OUTCOMES if any(name in summary.outcomes for summary in over_time)]
    outcomes = {name: [one.outcomes[name] / width_s for one in over_time] for name in present}
    word, kind = ("Passed", "passed") if report.passed else ("Failed", "failed")
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{_STYLE}{_colours()}</style>",
        f'<h1>{escape(title)}: <span class="{kind}">{word}</span></h1>',
        f"<p>{escape(_said(report))}</p>",
        "<ul>",
        *(f'<li class="{_kind(line)}">{escape(line)}</li>' for line in text.verdict(report)[:-1]),
        "</ul>",
        _table(text.rows(report)),
        "<h2>Outcomes, requests a second</h2>",
        _key({name: _OUTCOMES[name] for name in present}),
        charts.stacked(frame, width_s, outcomes),
        "<h2>Latency of right answers, from when each was due</h2>",
        _key({name: colour for name, colour in _LINES.items() if name != "memory"}),
        charts.lines(frame, _latencies(over_time, width_s), _seconds, logarithmic=True),
        "<h2>Percentiles</h2>",
        _table(_percentiles(report)),
    ]
    if report.memory:
        points = [(one.at, float(one.rss_bytes)) for one in report.memory]
        parts.append("<h2>Resident memory of the server's processes</h2>")
        parts.append(charts.lines(frame, {"memory": points}, lambda value: f"{value / 2**20:,.0f} MiB"))
    return "\n".join(parts) + "\n"


def _said(report: Report) -> str:
    plan = report.plan
    wire = {0.0: "HTTP", 1.0: "gRPC"}.get(plan.grpc_share, f"HTTP and gRPC ({plan.grpc_share:.0%})")
    leaving = f", {plan.leave_share:.0%} of callers leave" if plan.leave_share else ""
    return (
        f"Model {report.target.model} at {report.target.url}, {len(report.entries):,} requests over {wire}, "
        f"deadline {plan.deadline_s:g} s{leaving}. An open loop: requests are sent when they are due."
    )


def _latencies(over_time: Sequence[Summary], width_s: float) -> dict[str, list[tuple[float, float]]]:
    middles = [(index + 0.5) * width_s for index in range(len(over_time))]
    return {
        "p50": [(at, one.p50_s) for at, one in zip(middles, over_time, strict=True)],
        "p99": [(at, one.p99_s) for at, one in zip(middles, over_time, strict=True)],
        "max": [(at, one.max_s) for at, one in zip(middles, over_time, strict=True)],
    }


def _percentiles(report: Report) -> list[dict[str, object]]:
    ordered: dict[str, list[float]] = {}
    for entry in report.entries:
        if entry.outcome in (book.OK, book.UNAVAILABLE, book.QUOTA, book.DEADLINE, book.ERROR):
            ordered.setdefault(str(entry.outcome), []).append(entry.latency_s)
    table: list[dict[str, object]] = []
    for name, values in ordered.items():
        values.sort()
        shown = {f"p{share * 100:g}": _seconds(percentile(values, share)) for share in _SHARES}
        table.append({"outcome": name, "count": f"{len(values):,}", **shown})
    return table


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _kind(line: str) -> str:
    return "failed" if line.startswith("BROKEN") else "plain"


def _colours() -> str:
    fills = "".join(f"svg rect.{name} {{ fill: {colour}; }} " for name, colour in _OUTCOMES.items())
    return fills + "".join(f"svg polyline.{name} {{ stroke: {colour}; }} " for name, colour in _LINES.items())


def _key(colours: Mapping[str, str]) -> str:
    spans = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    return f'<p class="key">{"".join(spans)}</p>'


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return '<p class="none">Nothing to show.</p>'
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in one.values()) + "</tr>" for one in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
