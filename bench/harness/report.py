"""The result: tables on the terminal, and everything as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from harness.measure import IN_PROCESS, Contender, Plan, Record
from harness.workload import TABLES, Point

MIB = 1 << 20


def show(
    console: Console,
    plan: Plan,
    contenders: Sequence[Contender],
    records: Mapping[str, Record],
    versions: Mapping[str, str],
    reference: str,
) -> None:
    """Prints one table for each kind of work, then starts, memory and troubles."""
    for key, title in TABLES.items():
        show_rates(console, key, title, plan, contenders, records, reference)
    show_weights(console, contenders, records, versions)
    for contender in contenders:
        for workload, trouble in records[contender.variant].troubles.items():
            console.print(f"[red]{contender.variant}[/red] {workload}:", highlight=False)
            console.print(trouble, highlight=False, markup=False)


def show_rates(
    console: Console,
    key: str,
    title: str,
    plan: Plan,
    contenders: Sequence[Contender],
    records: Mapping[str, Record],
    reference: str,
) -> None:
    points = [point for point in plan.points if point.table == key]
    rows = [each for each in contenders if any(point.key in records[each.variant].loads for point in points)]
    if not rows:
        return
    table = Table(title=f"{key}  {title}", title_justify="left", title_style="bold")
    table.add_column("server")
    table.add_column("form")
    for point in points:
        table.add_column(f"{point.connections} conn.", justify="right")
        table.add_column(f"{reference} ÷", justify="right")
        table.add_column("p50 ms", justify="right")
        table.add_column("p99 ms", justify="right")
    if any(point.key in records[IN_PROCESS].loads for point in points):
        table.add_row(IN_PROCESS, "none", *cells_of(records[IN_PROCESS], points, records.get(reference)), style="dim")
    for contender in rows:
        record = records[contender.variant]
        form = next((record.forms[point.key] for point in points if point.key in record.forms), "")
        style = "bold" if contender.peer.name == "penstock" else "dim" if contender.peer.name == "limits" else None
        table.add_row(contender.variant, form, *cells_of(record, points, records.get(reference)), style=style)
    console.print(table)


def cells_of(record: Record, points: Sequence[Point], reference: Record | None) -> list[str]:
    """Four cells for each point: rate, the reference's rate ÷ it, and two latencies."""
    cells = []
    for point in points:
        loads = record.loads.get(point.key)
        if not loads:
            cells += [""] * 4
            continue
        factor = ratio(reference, record, point.key)
        rate = record.rate(point.key) or 0.0
        cells += [
            f"{rate:,.0f}" if rate >= 1000 else f"{rate:.1f}",
            "" if factor is None else f"{factor:.2f}×",
            f"{statistics.median(load.p50_s for load in loads) * 1e3:.2f}",
            f"{statistics.median(load.p99_s for load in loads) * 1e3:.2f}",
        ]
    return cells


def ratio(reference: Record | None, record: Record, key: str) -> float | None:
    """The reference's rate ÷ this one's: the median over the rounds both took part in, each round by itself."""
    if reference is None or reference is record or key not in reference.loads or key not in record.loads:
        return None
    pairs = zip(reference.loads[key], record.loads[key], strict=False)
    factors = [ours.rate / theirs.rate for ours, theirs in pairs if theirs.rate > 0]
    return statistics.median(factors) if factors else None


def show_weights(
    console: Console, contenders: Sequence[Contender], records: Mapping[str, Record], versions: Mapping[str, str]
) -> None:
    table = Table(title="Start, memory, failures", title_justify="left", title_style="bold")
    for name in ("server", "version", "settings"):
        table.add_column(name)
    for name in ("first answer s", "PSS MiB", "RSS MiB", "processes", "failed", "wrong"):
        table.add_column(name, justify="right")
    for contender in contenders:
        record = records[contender.variant]
        weights = record.weights.get("digits") or record.weights.get("conv") or []
        starts = record.starts_s.get("digits") or record.starts_s.get("conv") or []
        if not starts:
            continue
        table.add_row(
            contender.variant,
            versions[contender.peer.name],
            contender.peer.variants[contender.variant],
            f"{statistics.median(starts):.2f}",
            *(
                f"{statistics.median(sizes) / MIB:,.0f}" if weights else ""
                for sizes in ([weight.pss for weight in weights], [weight.rss for weight in weights])
            ),
            str(weights[-1].processes) if weights else "",
            str(record.failures()),
            str(record.wrong),
        )
    console.print(table)


def as_json(
    plan: Plan,
    contenders: Sequence[Contender],
    records: Mapping[str, Record],
    versions: Mapping[str, str],
    machine: Mapping[str, object],
) -> dict[str, object]:
    """Everything that was seen, unrounded."""
    return {
        "machine": dict(machine),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "in_process": asdict(records[IN_PROCESS]),
        "servers": {
            each.variant: {
                "peer": each.peer.name,
                "version": versions[each.peer.name],
                "settings": each.peer.variants[each.variant],
                **asdict(records[each.variant]),
            }
            for each in contenders
        },
    }
