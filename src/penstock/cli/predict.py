"""`penstock predict MODEL INPUT`: one call to a running server, and its answer for people or for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import typer

from penstock.cli import inputs
from penstock.cli.connection import ApiKey, CaFile, Url, connect, name_and_version
from penstock.cli.output import print_json, print_table
from penstock.core.errors import InvalidInput
from penstock.core.tensor import Array, datatype_of

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

# An output's row with more values than this is shown by its shape only.
SHOWN_VALUES = 12


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="The model, as `penstock models` names it.")],
    given: Annotated[str | None, typer.Argument(metavar="INPUT", help=f"{inputs.FORMS.capitalize()}.")] = None,
    made_up: Annotated[bool, typer.Option("--made-up", help="Send made-up values instead of an input.")] = False,
    rows: Annotated[int, typer.Option(help="Rows of made-up values.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one list per output.")] = False,
    timing: Annotated[bool, typer.Option("--timing", help="Also show where the time went, in the server.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
) -> None:
    """Asks a running server for one prediction.

    JSON is `{"input name": values}`, or the values alone for a model with one input, or a whole V2 request body.
    A CSV table has one row per row of the batch; an image is resized to what the model takes.

    Examples: `penstock predict iris "[[5.1, 3.5, 1.4, 0.2]]"`, `penstock predict iris rows.csv`,
    `penstock predict digits@2 --made-up --json`.
    """
    if made_up == (given is not None):
        raise InvalidInput(f"give an INPUT ({inputs.FORMS}), or --made-up")
    name, version = name_and_version(model)
    with connect(url, api_key, ca_file, timing=timing) as client:
        known = client.metadata(name, version).inputs
        values = inputs.made_up(known, rows) if given is None else inputs.read(given, known, sys.stdin)
        datatypes = {spec.name: spec.datatype for spec in known}
        result = client.infer(name, values, version=version, datatypes=datatypes)
    if as_json:
        plain = {key: _plain(array) for key, array in result.outputs.items()}
        print_json({"model": result.model, "version": result.version, "outputs": plain})
    else:
        print_table(table(result.outputs))
    if timing:
        split = "  ".join(f"{part} {seconds * 1e3:.3f} ms" for part, seconds in result.timings.items())
        print(f"server time: {split or 'not told'}", file=sys.stderr)


def table(outputs: Mapping[str, Array]) -> list[dict[str, object]]:
    """The outputs side by side, one row per row of the batch; one row in all where their lengths differ."""
    lengths = {array.shape[0] if array.ndim else 0 for array in outputs.values()}
    if len(lengths) != 1 or lengths == {0}:
        return [{name: _cell(array) for name, array in outputs.items()}]
    (length,) = lengths
    return [{name: _cell(array[row]) for name, array in outputs.items()} for row in range(length)]


def _cell(value: Array) -> str:
    array = np.asarray(value)
    if array.size > SHOWN_VALUES:
        return f"{datatype_of(array)}{list(array.shape)}"
    flat = [_text(item) for item in array.ravel().tolist()]
    return " ".join(flat)


def _text(item: object) -> str:
    if isinstance(item, bytes):
        return item.decode(errors="replace")
    return f"{item:.6g}" if isinstance(item, float) else str(item)


def _plain(array: Array) -> object:
    if datatype_of(array) == "BYTES":
        return np.vectorize(lambda item: item.decode(errors="replace"), otypes=[object])(array).tolist()
    return array.tolist()
