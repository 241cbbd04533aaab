"""`penstock logs NAME`: what its replicas print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.platform import Address, Name, connect

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def logs(
    name: Name,
    replica: Annotated[
        str | None, typer.Option("--replica", metavar="ID", help="Of one replica [default: the newest that serves].")
    ] = None,
    revision: Annotated[int | None, typer.Option("--revision", metavar="NUMBER", help="Of one revision.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="NUMBER", help="The last so many.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    fleet: Address = None,
) -> None:
    """Prints the output of a replica, of a failed one too; `penstock status NAME` lists them."""
    for line in connect(fleet).logs(name, replica=replica, revision=revision, lines=lines, follow=follow):
        sys.stdout.write(line + "\n")
        if follow:
            sys.stdout.flush()
