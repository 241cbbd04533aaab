"""Made-up values for documents and examples: the same for the same spec, and plausible to a model."""

from __future__ import annotations

import math
from typing import Final

from penstock.core.tensor import TensorSpec

_MOST_ELEMENTS: Final = 1024  # more is no example that a person reads


def sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    """A shape that fits: 1 for each open axis."""
    return tuple(1 if axis < 0 else axis for axis in spec.shape)


def sample_flat(spec: TensorSpec) -> list[object] | None:
    """Values for `sample_shape(spec)`, flat; None when they would be too many to show."""
    count = math.prod(sample_shape(spec))
    return [_value(spec.datatype, index) for index in range(count)] if count <= _MOST_ELEMENTS else None


def sample_rows(spec: TensorSpec) -> object:
    """The same values, nested as their shape; None when they would be too many to show."""
    values: list[object] | None = sample_flat(spec)
    if values is None:
        return None
    for axis in reversed(sample_shape(spec)[1:]):
        values = [values[start : start + axis] for start in range(0, len(values), axis)] if axis else []
    return values if spec.shape else values[0]


def _value(datatype: str, index: int) -> object:
    if datatype == "BYTES":
        return "text"
    if datatype == "BOOL":
        return index % 2 == 0
    return round(0.1 * (index % 10), 1) if datatype[0] in "FB" else index % 2  # 0 and 1 are safe as indexes
