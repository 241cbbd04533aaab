"""What user code gave back, as the tensors that were declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.core.errors import InvalidInput, ServableError
from penstock.core.servable import Tensors
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, datatype_of, normal

UNNAMED = "output"  # the name of a single output that nobody named


def tensors(value: object, specs: Sequence[TensorSpec]) -> Tensors:
    """`value` by name: a mapping; a tuple in the order of `specs`; or the one output itself.

    Numbers are cast to the declared type where no kind is lost (int to float, not float to int). Without `specs`
    everything is taken as numpy sees it.

    Raises:
        ServableError: an output is missing, not declared, or of another type or shape than declared.
    """
    named = _named(value, specs)
    if not specs:
        return {name: _free(name, item) for name, item in named.items()}
    found: dict[str, Array] = {}
    for spec in specs:
        if spec.name in named:
            found[spec.name] = _declared(spec, named[spec.name])
        elif not spec.optional:
            raise ServableError(f"the model gave no '{spec.name}'; it gave {', '.join(map(str, named)) or 'nothing'}")
    if len(found) < len(named):
        extra = [str(name) for name in named if name not in found]
        raise ServableError(f"the model gave {', '.join(extra)}, which is not declared as an output")
    return found


def _named(value: object, specs: Sequence[TensorSpec]) -> Mapping[str, object]:
    if isinstance(value, Mapping):
        return value
    if value is None:
        raise ServableError("the model gave back None; it should give a mapping of names to arrays")
    if isinstance(value, tuple) and len(specs) > 1:
        if len(value) != len(specs):
            raise ServableError(f"the model gave {len(value)} outputs, {len(specs)} are declared")
        return {spec.name: item for spec, item in zip(specs, value, strict=True)}
    if len(specs) > 1:
        raise ServableError(f"the model gave one {type(value).__name__}, {len(specs)} outputs are declared")
    return {specs[0].name if specs else UNNAMED: value}


def _declared(spec: TensorSpec, value: object) -> Array:
    if spec.datatype == "BYTES":
        array = normal(_objects(value))
    else:
        wanted = NUMPY_OF[spec.datatype]
        array = np.asarray(value)
        if array.dtype != wanted:
            if not np.can_cast(array.dtype, wanted, casting="same_kind") and array.size:
                raise ServableError(f"output '{spec.name}' is {array.dtype}, declared is {spec.datatype}")
            array = array.astype(wanted)
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
    shape = array.shape
    if len(shape) != len(spec.shape) or any(want not in (-1, got) for got, want in zip(shape, spec.shape, strict=True)):
        raise ServableError(f"output '{spec.name}' has shape {list(shape)}, declared is {list(spec.shape)}")
    return array


def _free(name: str, value: object) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ServableError(f"output '{name}' is no array: {error}") from error
    if array.dtype.kind in "SUO":
        array = _objects(value)
        strange = next((item for item in array.ravel().tolist() if not isinstance(item, (str, bytes))), None)
        if strange is not None:
            raise ServableError(f"output '{name}' holds a {type(strange).__name__}; arrays hold numbers, text or bytes")
    try:
        datatype_of(array)
    except InvalidInput as error:
        raise ServableError(f"output '{name}': {error}") from error
    return normal(array)


def _objects(value: object) -> Array:
    """Text or bytes as objects from the start: numpy's fixed-width bytes would drop zero bytes at the end."""
    return value if isinstance(value, np.ndarray) else np.array(value, dtype=object)
