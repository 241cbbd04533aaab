"""The V2 classification extension: an output's best values as text, with their positions and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.tensor import Array


def classify(array: Array, count: int, labels: Sequence[str] = (), *, batched: bool = True) -> Array:
    """The `count` highest values of each row as BYTES `"<value>:<index>"` or `"<value>:<index>:<label>"`.

    Gives `(batch, k)` when axis 0 is the batch and `(k,)` otherwise; k is `count`, or all there are if fewer. A row's
    other axes count as one. Highest first, equal values by index, NaN last. Floats are written with six decimals,
    as C++ `std::to_string` does, because clients compare the text with other servers'.
    Source: Open Inference Protocol V2, classification extension.

    Raises:
        InvalidInput: `count` is below 1, or the output's values are not integers or floats.
    """
    if count < 1:
        raise InvalidInput(f"classification asks for {count} classes, the least is 1")
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"classification needs integers or floats, the output holds {array.dtype}")
    shape = (array.shape[0], math.prod(array.shape[1:])) if batched and array.ndim else (1, array.size)
    rows = array.reshape(shape)
    width = min(count, rows.shape[1])
    # Sorting the mirrored rows ascending and reading them from the end keeps equal values in index order. Negating
    # instead would overflow unsigned and smallest signed integers.
    mirrored = rows[:, ::-1]
    order = np.argsort(mirrored, axis=1, kind="stable")
    if array.dtype.kind == "f" and (nan := np.isnan(mirrored)).any():
        order = np.lexsort((np.where(nan, 0, mirrored), ~nan), axis=1)
    order = rows.shape[1] - 1 - order[:, ::-1][:, :width]
    style = "f" if array.dtype.kind == "f" else "d"
    texts = np.empty((rows.shape[0], width), dtype=object)
    for row in range(rows.shape[0]):
        values = rows[row, order[row]].tolist()
        for column, (value, index) in enumerate(zip(values, order[row].tolist(), strict=True)):
            label = f":{labels[index]}" if index < len(labels) else ""
            texts[row, column] = f"{value:{style}}:{index}{label}".encode()
    return texts if batched and array.ndim else texts.reshape(width)
