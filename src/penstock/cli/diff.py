"""`penstock diff`: what `penstock apply` would change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.documents import FILE
from penstock.cli.platform import Address, AsJson, connect

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def diff(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What there should be.")] = Path(FILE),
    as_json: AsJson = False,
    fleet: Address = None,
) -> None:
    """Shows what differs between a file and the platform. Exits with 1 when something does, as `diff` does."""
    from penstock.cli.documents import read
    from penstock.cli.output import out, print_json

    documents = read(file)
    platform = connect(fleet)
    known = {status.name for status in platform.deployments()}
    rows = [
        {"deployment": name, "key": one.key, "before": one.before, "after": one.after}
        for name, document in documents.deployments.items()
        for one in platform.apply(name, document, dry_run=True).changed
    ]
    others = sorted(known - documents.deployments.keys())
    if as_json:
        print_json({"changes": rows, "not_in_file": others})
    else:
        for row in rows:
            new = row["deployment"] not in known
            before = "" if new else f"[red]- {json.dumps(row['before'])}[/]  "
            out().print(f"{row['deployment']}  {row['key']}  {before}[green]+ {json.dumps(row['after'])}[/]")
        for name in others:
            out().print(f"[dim]{name}  is not in {file}; `penstock apply --prune` would delete it[/]")
    if rows:
        raise typer.Exit(1)
