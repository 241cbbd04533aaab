"""Rows and columns of parsed JSON: the two ways people write a table, into named inputs and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.json_tensor import array_of_value, json_of_array
from penstock.core.tensor import Array, TensorSpec

UNDECLARED: Final = 'the model declares no inputs: name them, as in {"x": [1, 2]}'
# Without a declaration JSON's own types are all there is to go by.
_DATATYPE_OF_KIND: Final = {"b": "BOOL", "i": "INT64", "f": "FP64", "U": "BYTES"}


def columns_of_rows(rows: list[Any], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of a list of rows. A row is the one input's value, or an object with a value for each input; for a
    model of several inputs it may also be a list of their values in the model's order.

    Raises:
        InvalidInput: rows of different kinds, unknown or missing names, values that do not fit.
    """
    if not rows:
        raise InvalidInput("there are no rows")
    if all(type(row) is dict for row in rows) and not _are_bytes(rows, specs):
        names = list(rows[0])
        known = {spec.name: spec for spec in specs}
        if any(row.keys() != rows[0].keys() for row in rows):
            raise InvalidInput("the rows do not all name the same inputs")
        columns = {name: [row[name] for row in rows] for name in names}
        if not specs:
            return {name: array_of_value(column, spec_of_value(name, column)) for name, column in columns.items()}
        _check_names(names, known)
        return {name: array_of_value(column, known[name], rows=True) for name, column in columns.items()}
    if len(specs) == 1:
        return {specs[0].name: array_of_value(rows, specs[0], rows=True)}
    if not specs:
        raise InvalidInput(UNDECLARED)
    if any(type(row) is not list or len(row) != len(specs) for row in rows):
        names = [spec.name for spec in specs]
        raise InvalidInput(f"each row must be an object with, or a list of, the model's {len(names)} inputs {names}")
    return {
        spec.name: array_of_value([row[index] for row in rows], spec, rows=True) for index, spec in enumerate(specs)
    }


def inputs_of_columns(value: object, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of an object with a value for each input, or of the one input's value alone.

    Raises:
        InvalidInput: unknown names, values that do not fit, a lone value for a model of several inputs.
    """
    if isinstance(value, dict) and not _are_bytes([value], specs):
        if not specs:
            return {name: array_of_value(item, spec_of_value(name, item)) for name, item in value.items()}
        known = {spec.name: spec for spec in specs}
        _check_names(list(value), known)
        return {name: array_of_value(item, known[name]) for name, item in value.items()}
    if not specs:
        raise InvalidInput(UNDECLARED)
    if len(specs) != 1:
        raise InvalidInput(f"the model has {len(specs)} inputs: name them, {[spec.name for spec in specs]}")
    return {specs[0].name: array_of_value(value, specs[0])}


def spec_of_value(name: str, value: object) -> TensorSpec:
    """What an input that nobody declared is, by its value: BOOL, INT64, FP64 or BYTES, with as many axes as it nests.

    Raises:
        InvalidInput: rows of different lengths, or no values at all.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise InvalidInput(f"the rows of '{name[:80]}' have different lengths") from None
    datatype = _DATATYPE_OF_KIND.get(array.dtype.kind)
    if datatype is None:
        raise InvalidInput(f"the model declares no inputs, and the values of '{name[:80]}' are of no one type")
    return TensorSpec(name, datatype, (-1,) * array.ndim)


def rows_of_columns(outputs: Mapping[str, Array]) -> object:
    """One JSON-able object for each row of several outputs; named columns where they have no rows in common."""
    lengths = {array.shape[0] if array.ndim else -1 for array in outputs.values()}
    if len(lengths) != 1 or -1 in lengths:
        return {name: json_of_array(array) for name, array in outputs.items()}
    columns = [_listed(array) for array in outputs.values()]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]


def _listed(array: Array) -> list[object]:
    column = json_of_array(array)
    return column if isinstance(column, list) else array.tolist()


def _check_names(names: list[Any], known: Mapping[str, TensorSpec]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(f"the model has no input '{str(unknown[0])[:80]}'; it has {', '.join(known)}")


def _are_bytes(values: list[Any], specs: Sequence[TensorSpec]) -> bool:
    """Whether objects are bytes (`{"b64": …}`) for the one input, and not inputs by name."""
    return (
        len(specs) == 1
        and specs[0].datatype == "BYTES"
        and specs[0].name != "b64"
        and all(list(value) == ["b64"] for value in values)
    )
