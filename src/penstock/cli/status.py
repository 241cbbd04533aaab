"""`penstock status [NAME]`: what runs, who gets which share, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, AsJson, connect
from penstock.client.fleet_status import Status
from penstock.core.errors import NotFound

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_REFRESH_S = 1.0


@app.command(cls=Command)
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One deployment [default: all].")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew every second, and with each change.")
    ] = False,
    as_json: AsJson = False,
    fleet: Address = None,
) -> None:
    """Shows deployments: their revisions' shares, replicas, errors, latencies and rewards, and what the policy decided.

    With --watch off a terminal, or with --json, each change is one line of JSON.
    """
    platform = connect(fleet)
    if not watch:
        _show([platform.status(name)] if name else platform.deployments(), name, as_json)
        return
    if as_json or not sys.stdout.isatty():
        for all_of_them in platform.watch():
            _json_line(_named(all_of_them, name))
        return
    from rich.console import Console
    from rich.live import Live

    from penstock.cli.status_view import page

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        for all_of_them in platform.watch(_REFRESH_S):
            live.update(page(_named(all_of_them, name)), refresh=True)


def _named(statuses: Sequence[Status], name: str | None) -> list[Status]:
    found = [one for one in statuses if name is None or one.name == name]
    if name is not None and not found:
        raise NotFound(f"there is no deployment {name!r} (any more)")
    return found


def _show(statuses: Sequence[Status], name: str | None, as_json: bool) -> None:
    from penstock.cli import status_view
    from penstock.cli.output import out, print_json, print_table

    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(statuses[0] if name else list(statuses)))
    elif sys.stdout.isatty():
        out().print(status_view.page(statuses))
        if name:
            for table in (status_view.replicas(statuses[0]), status_view.revisions(statuses[0])):
                print_table(table)
                print()
    elif name:
        print_table(status_view.arms(statuses[0]))
    else:
        print_table(status_view.overview(statuses))


def _json_line(statuses: Sequence[Status]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(statuses).decode() + "\n")
    sys.stdout.flush()
