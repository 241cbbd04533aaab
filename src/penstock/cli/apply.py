"""`penstock apply`: makes the deployments and tenants of a file be, as the file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.documents import FILE
from penstock.cli.platform import Address, Wait, connect, follow, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What there should be.")] = Path(FILE),
    prune: Annotated[bool, typer.Option("--prune", help="Delete deployments that are not in the file.")] = False,
    wait: Wait = True,
    fleet: Address = None,
) -> None:
    """Makes each deployment and tenant equal to its table: what a table leaves out has its default.

    `penstock diff` shows first what would change. A tenant's key is printed once, when the tenant is made.
    """
    from penstock.cli.documents import read
    from penstock.cli.output import out

    documents = read(file)
    platform = connect(fleet)
    for name, document in documents.deployments.items():
        platform.apply(name, document, dry_run=True)  # all are looked at before the first is touched
    for name, limits in documents.tenants.items():
        made = platform.set_tenant(name, **limits)
        out().print(f"tenant {name}" + (f"  key {made.key}  (shown once)" if made.key else ""))
    for name, document in documents.deployments.items():
        tell(platform.apply(name, document))
    if prune:
        for status in platform.deployments():
            if status.name not in documents.deployments and status.phase != "deleting":
                platform.delete(status.name)
                out().print(f"{status.name}  deleted")
    if wait:
        for name in documents.deployments:
            follow(platform, name)
