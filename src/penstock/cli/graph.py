"""`penstock graph show FILE` and `penstock graph check FILE`: what a graph looks like, and whether it can work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.command import Command
from penstock.cli.connection import ApiKey, CaFile, ClientCert, ClientKey, Url
from penstock.core.errors import InvalidInput, NotFound, NotReady

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.core.servable import Signature
    from penstock.graphs.definition import Graph

_NOT_DRAWN = ("circle", "not there", "may pass")  # of `validate.problems`: there is no end to draw

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A graph (.yaml, .json), a config.pbtxt, or the folder that has one.")
]


@app.callback()
def graph() -> None:
    """Draws and checks inference graphs: our own, KServe's, Seldon Core 1's and Triton's ensembles."""


@app.command(cls=Command)
def show(
    file: File,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where it goes (.svg or .mmd); else standard output."),
    ] = None,
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Text for Markdown's ```mermaid blocks instead of an SVG.")
    ] = False,
) -> None:
    """Draws a graph as an SVG picture, or as a Mermaid flow chart."""
    from penstock.graphs import draw, validate

    read = _read(file)
    suffix = Path(output).suffix.lower() if output else ""
    if suffix not in ("", ".svg", ".mmd", ".mermaid", ".md"):
        raise InvalidInput(f"--output {output}: a picture is an .svg, a flow chart an .mmd")
    if faults := [each for each in validate.problems(read) if any(why in each for why in _NOT_DRAWN)]:
        raise InvalidInput("; ".join(faults))
    text = draw.mermaid(read) if mermaid or suffix in (".mmd", ".mermaid", ".md") else draw.svg(read)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {output}: {error.strerror}") from error
    typer.echo(f"{output}: {len(list(read.calls()))} steps")


@app.command(cls=Command)
def check(
    file: File,
    url: Url = None,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask a server for the models' tensors, although one is named.")
    ] = False,
) -> None:
    """Looks for what cannot work: circles, nodes and tensors that are not there, types and shapes that do not fit.

    With --url (or PENSTOCK_URL) the server is asked what its models take and give.
    """
    from penstock import config
    from penstock.cli.connection import connect, tls_of
    from penstock.graphs import validate

    read = _read(file)
    if offline or not (url or config.environment().get("PENSTOCK_URL")):
        faults = validate.problems(read)
        known = "without the models' tensors; --url names a server that has them"
    else:
        with connect(url, api_key, tls_of(ca_file, client_cert, client_key)) as client:
            faults = validate.problems(read, _asking(client.metadata))
        known = "with the models' tensors"
    for fault in faults:
        typer.echo(f"fault  {fault}")
    for note in read.notes:
        typer.echo(f"note   {note} has no effect here")
    if faults:
        raise typer.Exit(1)
    steps = len(list(read.calls()))
    typer.echo(f"ok     {read.name}: {read.dialect}, {len(read.nodes)} nodes, {steps} steps, checked {known}")


def _asking(metadata: Callable[..., object]) -> Callable[[str, str], Signature | None]:
    from penstock.core.servable import Signature

    asked: dict[tuple[str, str], Signature | None] = {}

    def signature_of(model: str, version: str) -> Signature | None:
        if (model, version) not in asked:
            try:
                found = metadata(model, version)
            except (NotFound, NotReady):
                asked[model, version] = None
            else:
                inputs, outputs = (tuple(getattr(found, each)) for each in ("inputs", "outputs"))
                asked[model, version] = Signature(inputs, outputs, "remote", batchable=False)
        return asked[model, version]

    return signature_of


def _read(file: str) -> Graph:
    from penstock.graphs import reading

    path = Path(file).expanduser()
    if path.is_dir():
        path = path / "config.pbtxt"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from None
    try:
        if path.suffix == ".pbtxt":
            return reading.read_ensemble(text, path.resolve().parent.name)
        return reading.read(text, path.stem)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}") from None
