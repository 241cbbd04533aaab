"""`penstock config`: every effective value and where it came from; and the page of all options, made from the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from penstock.cli.command import Command
from penstock.cli.flags import ELSEWHERE, shown, with_options
from penstock.config import MODEL_PREFIX, PREFIX, Option, Resolved, options_of
from penstock.fleet.up import options as platform
from penstock.runtime.options import ModelOptions, ServerOptions

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
@with_options(server=ServerOptions, model=ModelOptions)
def config(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", help="As for `penstock serve`.")] = None,
    trust: Annotated[list[str] | None, typer.Option("--trust", metavar="PATH", help="As for `serve`.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Configuration file [default: ./penstock.toml].")
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what has its default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page that documents every option.")] = False,
    server: dict[str, object] | None = None,
    model: dict[str, object] | None = None,
) -> None:
    """Shows each option's effective value and where it came from.

    That is a flag, the environment, the file or the default. Takes what `penstock serve` takes, checks it the same way,
    and starts nothing.
    """
    if markdown:
        print(page(), end="")
        return
    from penstock.cli.output import print_json, print_table
    from penstock.runtime.assemble import Written, effective

    configuration = effective(Written(paths or (), server or {}, model or {}, trust or ()), config)
    sections: dict[str, Resolved[Any]] = {"server": configuration.server}
    sections |= {f"models.{each.value.name}": each for each in configuration.models}
    if as_json:
        print_json({title: dict(_entries(resolved, changed)) for title, resolved in sections.items()})
        return
    rows = []
    for title, resolved in sections.items():
        options = options_of(type(resolved.value))
        for name, entry in _entries(resolved, changed):
            value = shown(options[name], getattr(resolved.value, name))
            rows.append({"table": title, "option": name, "value": value, "from": entry["from"]})
    print_table(rows)


def _entries(resolved: Resolved[Any], changed: bool) -> Iterator[tuple[str, dict[str, object]]]:
    for name, option in options_of(type(resolved.value)).items():
        origin = resolved.origins[name]
        if changed and origin == "default":
            continue
        value = getattr(resolved.value, name)
        if option.secret and value is not None:
            value = "…"
        yield name, {"value": dict(value) if isinstance(value, Mapping) else value, "from": origin}


INTRODUCTION = """\
# Configuration

<!-- Made from the code by `make docs`; do not edit. -->

Every option can be given in four places. The first that gives it wins:

1. a flag of `penstock serve`: `--http-port 9000`;
2. the environment: `PENSTOCK_HTTP_PORT=9000`, and for options of every model `PENSTOCK_MODEL_WORKERS=2`;
3. a file, `penstock.toml` in the working directory or the one that `--config` or `PENSTOCK_CONFIG` names;
4. the default.

```toml
[server]
http_port = 9000

[defaults]              # for every model
timeout_s = "500ms"

[models.iris]           # for one model
path = "models/iris"    # beside this file
workers = 2

[models.iris.options]   # for this model's adapter
```

Sizes may be written as `256MiB`, times as `500ms`, `2s` or `5m`; a plain number is bytes or seconds. Lists are
`a,b` as a flag or in the environment; tables are `name=value,name=value`.

A key that does not exist is an error that names the nearest one. So is a key that would have no effect where it
stands, such as `batch_sizes` with `batch = false`. `penstock config` takes what `penstock serve` takes and shows each
effective value with the place it came from.
"""


def page() -> str:
    """`docs/configuration.md`: every option with its flag, environment name, file key, type, default and meaning."""
    parts = [
        INTRODUCTION,
        "\n## The server: `[server]`\n\n",
        *_rows(ServerOptions, PREFIX),
        "\n## A model: `[models.NAME]`, and `[defaults]` for all\n\n",
        "Flags hold for every model served. Options without an environment name are for one model: they cannot stand\n"
        "in `[defaults]`, and their flags need exactly one model.\n\n",
        *_rows(ModelOptions, MODEL_PREFIX),
        "\n## The platform: `penstock up`\n\n",
        "Flags and the environment only. What a deployment may say is in [deployments](deployments.md).\n\n",
        *_rows(platform.UpOptions, platform.PREFIX, "Option"),
    ]
    return "".join(parts)


def _rows(kind: type[Any], prefix: str, title: str = "File key") -> Iterator[str]:
    yield f"| {title} | Flag | Environment | Allowed | Default | Meaning |\n|---|---|---|---|---|---|\n"
    for option in options_of(kind).values():
        variable = "" if option.individual else f"`{prefix}{option.name.upper()}`"
        cells = [f"`{option.name}`", _flag(option), variable, option.allowed, _shown_default(option), option.doc]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _flag(option: Option) -> str:
    if option.name in ELSEWHERE:
        return {"path": "`PATH`", "trust": "`--trust PATH`"}[option.name]
    return f"`{option.flag}`" + (f", `--no-{option.flag[2:]}`" if option.annotation is bool else "")


def _shown_default(option: Option) -> str:
    text = shown(option, option.default)
    return f"`{text}`" if text else "unset"
