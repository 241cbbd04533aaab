"""Typed tensor contents and parameters of the V2 gRPC messages, as arrays and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.core.errors import InvalidInput, TooLarge
from penstock.core.messages import Parameter
from penstock.core.tensor import NUMPY_OF, Array, element_count, from_wire

# numpy's own limit on axes is 64, and was 32 before numpy 2; models have single digits.
MOST_AXES = 32

_FIELD_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def raw_array(name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview, most_bytes: int) -> Array:
    """The array of one raw input, a view of `data` where its address allows.

    Raises:
        InvalidInput: datatype, shape and data do not belong together.
        TooLarge: more than `most_bytes`.
    """
    if len(data) > most_bytes:
        raise TooLarge(f"input '{name}' has {len(data)} bytes, at most {most_bytes} are allowed")
    try:
        array = from_wire(data, datatype, shape)
    except InvalidInput as error:
        raise InvalidInput(f"input '{name}': {error.message}") from None
    except ValueError:  # a shape with a zero in it, and axes whose product numpy cannot count
        raise InvalidInput(f"input '{name}' has the impossible shape {list(shape)}") from None
    # Numeric libraries are handed this memory and may use instructions that want it aligned.
    return array if array.flags.aligned else array.copy()


def typed_array(name: str, datatype: str, shape: tuple[int, ...], contents: Any, most_bytes: int) -> Array:
    """The array of one input with typed contents (an InferTensorContents).

    Raises:
        InvalidInput: FP16 or BF16, the wrong field, too few or too many values, or a value that does not fit.
        TooLarge: more than `most_bytes`.
    """
    field = _FIELD_OF.get(datatype)
    if field is None:
        if datatype in NUMPY_OF:
            raise InvalidInput(f"input '{name}': {datatype} has no typed contents, send it in raw_input_contents")
        raise InvalidInput(f"input '{name}': unknown datatype {datatype!r}; one of {', '.join(NUMPY_OF)}")
    present = [descriptor.name for descriptor, _ in contents.ListFields()]
    if present not in ([], [field]):
        raise InvalidInput(f"input '{name}': {datatype} values belong in {field}, got {', '.join(present)}")
    values = getattr(contents, field)
    count = element_count(shape)
    if len(values) != count:
        raise InvalidInput(f"input '{name}' has {len(values)} values for shape {list(shape)}, which takes {count}")
    dtype = NUMPY_OF[datatype]
    if count * dtype.itemsize > most_bytes:
        raise TooLarge(f"input '{name}' has {count * dtype.itemsize} bytes, at most {most_bytes} are allowed")
    try:
        if datatype == "BYTES":
            array: Array = np.empty(count, dtype=object)
            array[:] = list(values)
        else:
            array = np.fromiter(values, dtype, count)  # no list of Python numbers between
        return array.reshape(shape)
    except OverflowError:
        raise InvalidInput(f"input '{name}' has a value that {datatype} cannot hold") from None
    except ValueError:
        raise InvalidInput(f"input '{name}' has the impossible shape {list(shape)}") from None


def parameters_in(message: Mapping[str, Any]) -> dict[str, Parameter]:
    """The plain values of a map of InferParameter.

    Raises:
        InvalidInput: a parameter has no value.
    """
    values: dict[str, Parameter] = {}
    for key, choice in message.items():
        field = choice.WhichOneof("parameter_choice")
        if field is None:
            raise InvalidInput(f"parameter '{key}' has no value")
        values[key] = getattr(choice, field)
    return values


def put_parameter(message: Any, key: str, value: Parameter) -> None:
    """Sets `key` in a map of InferParameter, in the field of the value's type."""
    choice = message[key]
    if isinstance(value, bool):
        choice.bool_param = value
    elif isinstance(value, int):
        if value < 1 << 63:
            choice.int64_param = value
        else:
            choice.uint64_param = value
    elif isinstance(value, float):
        choice.double_param = value
    else:
        choice.string_param = value
