"""`penstock rollback NAME`: back to the revision before."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, Name, Wait, connect, follow, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option("--to", metavar="REVISION", help="Which one [default: the one before].")
    ] = None,
    wait: Wait = True,
    fleet: Address = None,
) -> None:
    """Gives all traffic back to an earlier revision. One that is kept warm takes over at once."""
    platform = connect(fleet)
    tell(platform.rollback(name, to))
    if wait:
        follow(platform, name)
