"""`penstock predict MODEL INPUT`: one call to a running server, and its answer for people or for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np
import typer

from penstock.cli import inputs
from penstock.cli.command import Command
from penstock.cli.connection import ApiKey, CaFile, ClientCert, ClientKey, Url, connect, name_and_version, tls_of
from penstock.cli.output import print_json, print_table
from penstock.client import Client
from penstock.client.made_up import make_up
from penstock.core.errors import InvalidInput, NotFound, Unsupported
from penstock.core.tensor import Array, datatype_of

app = typer.Typer(add_completion=False, rich_markup_mode=None)

# An output's row with more values than this is shown by its shape only.
SHOWN_VALUES = 12


@app.command(cls=Command)
def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model, as `penstock models` names it; or MODEL@VERSION.")
    ],
    given: Annotated[
        str | None, typer.Argument(metavar="INPUT", help=f"{inputs.FORMS[0].upper()}{inputs.FORMS[1:]}.")
    ] = None,
    made_up: Annotated[bool, typer.Option("--made-up", help="Send made-up values instead of an input.")] = False,
    rows: Annotated[int, typer.Option(metavar="NUMBER", help="Rows of made-up values.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one list per output.")] = False,
    timing: Annotated[bool, typer.Option("--timing", help="Also show where the time went, in the server.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
) -> None:
    """Asks a running server for one prediction.

    The answers of a model that streams are printed as they come.

    JSON is `{"input name": values}`, or the values alone for a model with one input, or a whole V2 request body.
    A CSV table has one row per row of the batch; an image is resized to what the model takes.

    Examples: `penstock predict iris "[[5.1, 3.5, 1.4, 0.2]]"`, `penstock predict iris rows.csv`,
    `penstock predict digits@2 --made-up --json`.
    """
    if made_up == (given is not None):
        raise InvalidInput(f"give an INPUT ({inputs.FORMS}), or --made-up")
    name, version = name_and_version(model)
    with connect(url, api_key, tls_of(ca_file, client_cert, client_key), timing=timing) as client:
        known = client.metadata(name, version).inputs
        values = make_up(known, rows) if given is None else inputs.read(given, known, sys.stdin.buffer)
        if _streams(client, name, version):
            _print_stream(client.stream(name, values, version=version), as_json)
            return
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


def _streams(client: Client, name: str, version: str) -> bool:
    """Whether the model may give any number of answers; servers of other makes may not say."""
    try:
        policy = client.config(name, version).get("model_transaction_policy")
    except (NotFound, Unsupported, InvalidInput):
        return False
    return isinstance(policy, dict) and policy.get("decoupled") is True


def _print_stream(answers: Iterable[Mapping[str, object]], as_json: bool) -> None:
    """Each answer when it comes: a line of JSON, or of a table whose titles stand before the first."""
    titles: list[str] = []
    for answer in answers:
        outputs = {key: value for key, value in answer.items() if key not in ("id", "model_name", "model_version")}
        if as_json:
            print(json.dumps(outputs, ensure_ascii=False), flush=True)
            continue
        if list(outputs) != titles:
            titles = list(outputs)
            print("\t".join(titles))
        print("\t".join(_flat(value) for value in outputs.values()), flush=True)


def _flat(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
