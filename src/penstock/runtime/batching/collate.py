"""Splits a batch's outputs along axis 0. Executors join the inputs, each where it copies them anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.core.errors import ServableError
from penstock.core.tensor import Array


def split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """Each request's part of a whole batch's outputs, as views. Rows beyond the sum are padding and are left out.

    Raises:
        ServableError: an output has fewer rows than the batch had: nobody could tell whose they are.
    """
    total = sum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] < total:
            raise ServableError(
                f"output '{name}' has shape {list(array.shape)} for a batch of {total} rows: axis 0 must be the batch"
            )
    pieces: list[dict[str, Array]] = []
    start = 0
    items = list(outputs.items())
    for count in rows:
        end = start + count
        pieces.append({name: array[start:end] for name, array in items})
        start = end
    return pieces
