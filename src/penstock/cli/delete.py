"""`penstock delete NAME…`: takes deployments out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, connect

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="The deployments.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    fleet: Address = None,
) -> None:
    """Deletes deployments with their replicas, revisions and statistics. Requests in flight are answered first."""
    from penstock.cli.output import out

    if not yes and sys.stdin.isatty():
        typer.confirm(f"delete {', '.join(names)}?", abort=True)
    platform = connect(fleet)
    for name in names:
        platform.status(name)  # one that is not there stops it before the first is gone
    for name in names:
        platform.delete(name)
        out().print(f"{name}  deleted")
