"""Joins and splits the tensors of a batch along axis 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.core.errors import ServableError
from penstock.core.tensor import Array


def join(parts: Sequence[Mapping[str, Array]], pad_rows: int) -> dict[str, Array]:
    """One mapping with the parts' rows after each other; `pad_rows` times the last row at the end."""
    if len(parts) == 1 and not pad_rows:
        return dict(parts[0])
    joined: dict[str, Array] = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if pad_rows:
            arrays.append(np.repeat(arrays[-1][-1:], pad_rows, axis=0))
        joined[name] = np.concatenate(arrays)
    return joined


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
