"""`penstock comparison NAME`: what a shadow's answers looked like beside the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, AsJson, Name, connect
from penstock.cli.status_view import number, percent

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class _Comparison(msgspec.Struct):
    """What the table shows of one shadow's report; docs/decisions-and-feedback.md tells all of it."""

    revision: int
    compared: int
    not_compared: Mapping[str, int]
    status: Mapping[str, Any]
    latency_ms: Mapping[str, Mapping[str, float | None]]
    outputs: Mapping[str, Any]
    examples: tuple[Mapping[str, Any], ...] = ()


@app.command(cls=Command)
def comparison(
    name: Name,
    examples: Annotated[bool, typer.Option("--examples", help="Show the pairs that differ most, too.")] = False,
    as_json: AsJson = False,
    fleet: Address = None,
) -> None:
    """Shows how a shadow's answers compare with the real ones: statuses, latencies and outputs."""
    from penstock.cli.output import out, print_json, print_table

    report = connect(fleet).comparison(name)
    if as_json:
        print_json(report)
        return
    found = msgspec.convert(report.get("comparisons", ()), tuple[_Comparison, ...])
    if not found:
        out().print(f"{name}  nothing was compared yet; `penstock traffic {name} --shadow REVISION` begins it")
    print_table([_row(one) for one in found])
    for one in found if examples else ():
        for example in one.examples:
            out().print(f"\nrevision {one.revision}: {example['what']}", markup=False)
            for side in ("live", "shadow"):
                told = example[side]
                out().print(f"  {side:6}  {told['status']}  {told['latency_ms']:.3g} ms  {told['body']}", markup=False)


def _row(one: _Comparison) -> dict[str, object]:
    real, shadow, outputs = one.latency_ms["real"], one.latency_ms["shadow"], one.outputs
    return {
        "shadow": f"revision {one.revision}",
        "compared": one.compared,
        "left out": sum(one.not_compared.values()),
        "same status": percent(one.status.get("equal_share")),
        "equal outputs": percent(outputs.get("equal_share")),
        "same top": percent(outputs.get("top_agreement")),
        "largest difference": number(outputs.get("max_abs_difference")),
        "p50 ms": f"{number(shadow['p50'])} (real {number(real['p50'])})",
        "p99 ms": f"{number(shadow['p99'])} (real {number(real['p99'])})",
    }
