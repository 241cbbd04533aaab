"""What the command line prints: rich text on a terminal, plain lines or JSON otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penstock.core.errors import PenstockError


def out() -> Console:
    """Standard output. Long lines are not broken: they are there to be copied."""
    return Console(soft_wrap=True, highlight=False)


def complain(error: PenstockError) -> None:
    """Prints an error as one line on standard error, without a traceback."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error[/]  {escape(error.message)}")


def print_json(value: object) -> None:
    """One JSON document, indented on a terminal and on one line otherwise."""
    sys.stdout.write(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(rows: Sequence[Mapping[str, object]], right: Sequence[str] = ()) -> None:
    """A table whose columns are the rows' keys; columns named in `right` are aligned to the right.

    Off a terminal it is one line a row, columns apart by tabs, for `cut` and `awk`.
    """
    if not rows:
        return
    if not sys.stdout.isatty():
        lines = ["\t".join(rows[0])] + ["\t".join(_cell(value) for value in row.values()) for row in rows]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console(highlight=False).print(table)


def _cell(value: object) -> str:
    return "; ".join(str(value).replace("\t", " ").splitlines())
