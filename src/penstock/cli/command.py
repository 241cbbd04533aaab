"""The class of every command: how its help looks."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand


class Command(TyperCommand):
    """A command whose help names every flag in full at 80 columns, in plain text that `grep` can search.

    Typer's own tables cut long names off there: `--max-decompress…`. Options stand under the title of their panel.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if isinstance(parameter, TyperArgument):
                name = record[0].partition(" <")[0]  # newer Typers add the Python type
                sections.setdefault("Arguments", []).append((name, parameter.help or ""))
            else:
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
