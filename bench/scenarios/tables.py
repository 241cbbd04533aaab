"""Shows findings: one table per scenario, and one that sums up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from scenarios.contestant import Contestant
from scenarios.finding import Finding
from scenarios.plans import SCENARIOS, Scenario

_GOOD, _BAD = "green", "red"
# A health endpoint needs a moment to learn of a death.
_FALSE_READY_S = 0.5


def verdict(finding: Finding) -> str:
    """The broken rules in a few words; "ok" when there are none."""
    words = [f"{rule} {count:,}" for rule, count in finding.broken.items()]
    if finding.back is False:
        words.append("not back")
    if finding.orphans:
        words.append(f"{finding.orphans} orphans")
    if max(finding.false_ready_s.values(), default=0.0) >= _FALSE_READY_S:
        words.append("false ready")
    if finding.trouble:
        words.append(finding.trouble.split(":")[0])
    return ", ".join(words) or "ok"


def show(console: Console, findings: Sequence[Finding], contestants: Mapping[str, Contestant]) -> None:
    """Prints everything."""
    console.print(_servers_table(contestants))
    for scenario in SCENARIOS:
        rows = [finding for finding in findings if finding.scenario == scenario.name]
        if rows:
            console.print(_scenario_table(scenario, rows, contestants))
    console.print(_summary_table(findings))


def _servers_table(contestants: Mapping[str, Contestant]) -> Table:
    table = Table(title="Servers", title_justify="left", title_style="bold")
    for head in ("server", "version", "set up with", "deadlines it obeys", "how it is built", "answers/s at most"):
        table.add_column(head)
    for name, one in contestants.items():
        version = one.version if one.version == one.says or not one.says else f"{one.version} ({one.says})"
        about = one.server
        table.add_row(name, version, about.settings, about.deadlines, about.structure, f"{one.capacity:,.0f}")
    return table


def _scenario_table(scenario: Scenario, rows: Sequence[Finding], contestants: Mapping[str, Contestant]) -> Table:
    table = Table(title=f"{scenario.name}: {scenario.what}", title_justify="left", title_style="bold")
    table.add_column("server")
    used = [(head, cell) for head, cell in _COLUMNS.items() if any(cell(row) for row in rows)]
    for head, _ in used:
        table.add_column(head)
    table.add_column("notes")
    for row in rows:
        server = contestants[row.server].server
        unjudged = "" if row.generator_on_time else "the generator was late itself, so lateness is not judged"
        notes = [f"deadlines: {server.deadlines}", unjudged, row.trouble]
        table.add_row(row.server, *(cell(row) for _, cell in used), "; ".join(filter(None, notes)))
    return table


def _summary_table(findings: Sequence[Finding]) -> Table:
    table = Table(title="All: broken rules", title_justify="left", title_style="bold", show_lines=True)
    table.add_column("scenario")
    servers = list(dict.fromkeys(finding.server for finding in findings))
    for server in servers:
        table.add_column(server)
    by_place = {(finding.scenario, finding.server): finding for finding in findings}
    for scenario in SCENARIOS:
        cells = [by_place.get((scenario.name, server)) for server in servers]
        if any(cells):
            table.add_row(scenario.name, *(_coloured(verdict(cell)) if cell else "" for cell in cells))
    return table


def _coloured(text: str) -> str:
    return f"[{_GOOD if text == 'ok' else _BAD}]{text}[/]"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _ms(value: float | None) -> str:
    return "" if not value else f"{value * 1e3:,.0f} ms"


def _back(finding: Finding) -> str:
    if finding.back is None:
        return ""
    return _seconds(finding.back_s) if finding.back else "[red]not in this run[/]"


def _false_ready(finding: Finding) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in finding.false_ready_s.items() if value)


_COLUMNS: dict[str, Callable[[Finding], str]] = {
    "broken rules": lambda row: _coloured(_counts(row.broken) or "ok"),
    "outcomes": lambda row: _counts(row.outcomes),
    "bad rows": lambda row: _counts(row.bad_rows),
    "goodput ÷ possible": lambda row: "" if row.goodput_share is None else f"{row.goodput_share:.0%}",
    "p99": lambda row: _ms(row.p99_s),
    "refused p99": lambda row: _ms(row.refusal_p99_s),
    "well again after": _back,
    "exit after": lambda row: _seconds(row.exit_s),
    "not ready after": lambda row: _seconds(row.unready_s),
    "orphans": lambda row: "" if row.orphans is None else str(row.orphans),
    "ports held": lambda row: "" if row.ports_held is None else str(row.ports_held),
    "shared memory left": lambda row: "" if row.memory_left is None else str(row.memory_left),
    "grown": lambda row: "" if row.grown_bytes is None else f"{row.grown_bytes / 2**20:+.1f} MiB",
    "ready, and nothing answered": _false_ready,
    "live, slowest": lambda row: _ms(row.live_max_s),
}
