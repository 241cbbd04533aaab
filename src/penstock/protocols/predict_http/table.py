"""Comma-separated rows as a model's inputs: one matrix, or a column for each input."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final

from penstock.core.errors import InvalidInput, TooLarge
from penstock.core.json_tensor import array_of_value
from penstock.core.tensor import Array, TensorSpec

# A row of two bytes is a list with a text in it, and then a list with a number: measured with CPython 3.11, rounded up.
_ROW_BYTES: Final = 310  # with its first cell
_CELL_BYTES: Final = 110
_MOST_MEMORY_BYTES: Final = 1 << 30

_TRUTHS: Final = {"true": True, "false": False, "1": True, "0": False}


def read_csv(text: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of rows, with or without a line of names above them.

    A model of one input takes the rows as its matrix, and a line above that holds no number is left out. A model of
    several takes a column for each, in its own order or as the line above names them.

    Raises:
        InvalidInput: rows of different lengths, unknown names, cells that are no values of the input.
        TooLarge: reading it would take over a gigabyte of memory.
    """
    rows_at_most = max(text.count("\n"), text.count("\r"))
    if rows_at_most * _ROW_BYTES + text.count(",") * _CELL_BYTES > _MOST_MEMORY_BYTES:
        raise TooLarge(
            f"the CSV has so many rows and cells that reading them would take over {_MOST_MEMORY_BYTES >> 20} MiB of "
            "memory; send fewer at a time, or .npy"
        )
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise InvalidInput(f"the body is no CSV: {error}") from None
    if not rows or not specs:
        raise InvalidInput("the CSV has no rows" if specs else "the model has no inputs")
    top = [cell.strip() for cell in rows[0]]
    known = {spec.name: spec for spec in specs}
    if len(specs) > 1 or top == [specs[0].name]:
        names = top if set(top) & known.keys() else list(known)
        if unknown := [name for name in names if name not in known]:
            raise InvalidInput(f"the model has no input '{unknown[0][:80]}'; it has {', '.join(known)}")
        body = rows[1:] if names is top else rows
        _check_widths(body, len(names))
        return {
            name: array_of_value([_cell(row[index], known[name]) for row in body], known[name], rows=True)
            for index, name in enumerate(names)
        }
    spec = specs[0]
    body = rows if spec.datatype == "BYTES" or any(map(_is_number, top)) else rows[1:]
    _check_widths(body, len(top))
    matrix: object = [[_cell(cell, spec) for cell in row] for row in body]
    if len(spec.shape) == 1 and len(top) == 1:
        matrix = [_cell(row[0], spec) for row in body]
    return {spec.name: array_of_value(matrix, spec, rows=True)}


def _check_widths(rows: Sequence[Sequence[str]], width: int) -> None:
    if not rows:
        raise InvalidInput("the CSV has no rows")
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InvalidInput(f"row {number} of the CSV has {len(row)} columns, expected are {width}")


def _cell(text: str, spec: TensorSpec) -> object:
    datatype = spec.datatype
    if datatype == "BYTES":
        return text
    try:
        if datatype == "BOOL":
            return _TRUTHS[text.strip().lower()]
        return float(text) if datatype in ("FP16", "FP32", "FP64", "BF16") else int(text)
    except (ValueError, KeyError):
        raise InvalidInput(f"input '{spec.name}' takes {datatype}, the CSV holds {text[:40]!r}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True
