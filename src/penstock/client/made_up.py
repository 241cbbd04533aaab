"""Inputs that are made up from a model's metadata, for whoever has none at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec


def make_up(
    specs: Sequence[TensorSpec], rows: int, *, seed: int | tuple[int, int] = 0, integers_below: int = 2
) -> dict[str, Array]:
    """Values of the right type: noise between 0 and 1 for floats, integers from 0, short texts. Axis 0 has `rows` where
    it may have any length; other open axes have length 1. The same seed makes the same.

    Raises: InvalidInput: nothing is declared."""
    if not specs:
        raise InvalidInput("the model declares no inputs: nobody knows what to make up; give some (--input)")
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for spec in specs:
        if spec.optional:
            continue
        shape = tuple((rows if axis == 0 else 1) if size < 0 else size for axis, size in enumerate(spec.shape))
        dtype = NUMPY_OF[spec.datatype]
        if dtype.kind == "O":
            array: Array = np.empty(shape, dtype=object)
            array.ravel()[:] = [random.bytes(6).hex().encode() for _ in range(array.size)]
        elif dtype.kind == "f":
            array = random.random(shape).astype(dtype)
        else:
            array = random.integers(0, 2 if dtype.kind == "b" else integers_below, shape).astype(dtype)
        made[spec.name] = array
    return made
