"""numpy's .npy files from strangers: the header is parsed as data, its promises are checked, pickles are refused."""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, datatype_of, normal

MAGIC: Final = b"\x93NUMPY"
_HEADER_BYTES: Final = 4096  # real headers are 128; numpy's reader gets slow on long ones


def read_npy(data: memoryview, spec: TensorSpec) -> Array:
    """The array of a .npy file as the datatype of `spec`; a view of `data` where nothing has to be converted.

    Numbers are converted only where no value changes but by rounding of floats: a float64 file serves a FP32 model.

    Raises:
        InvalidInput: broken file, Python objects in it, values that the datatype does not hold.
    """
    file = io.BytesIO(data[: _HEADER_BYTES + 16])
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file, max_header_size=_HEADER_BYTES)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise InvalidInput(f"the body is no .npy file that can be read: {_first_line(error)}") from None
    if dtype.hasobject or dtype.kind not in "biufSU" or dtype.itemsize == 0:
        raise InvalidInput(f"the .npy file holds {dtype}; numbers, truth values and texts of fixed width can be read")
    values = data[file.tell() :]
    if any(axis < 0 for axis in shape) or math.prod(shape) * dtype.itemsize != len(values) or len(shape) > 64:
        raise InvalidInput(f"the .npy file promises {dtype} of shape {shape}, but holds {len(values)} bytes of data")
    try:
        array: Array = np.frombuffer(values, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    except ValueError:  # an empty array with an axis that numpy cannot count
        raise InvalidInput(f"the .npy file has the shape {shape}") from None
    try:
        return _as(array, spec)
    except UnicodeError:
        raise InvalidInput("the .npy file holds text that is no Unicode") from None


def _as(array: Array, spec: TensorSpec) -> Array:
    if spec.datatype == "BYTES":
        if array.dtype.kind not in "SU":
            raise InvalidInput(f"input '{spec.name}' takes BYTES, the .npy file holds {array.dtype}")
        return normal(array)
    wanted = NUMPY_OF[spec.datatype]
    if array.dtype == wanted:
        return array
    if array.dtype.kind in "SU" or (array.dtype.kind == "b") != (wanted.kind == "b"):
        raise InvalidInput(f"input '{spec.name}' takes {spec.datatype}, the .npy file holds {datatype_of(array)}")
    if array.dtype.kind == "f" and wanted.kind != "f":
        raise InvalidInput(f"input '{spec.name}' takes {spec.datatype}, the .npy file holds floats")
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if wanted.kind == "f":
        lost = bool((np.isfinite(array) != np.isfinite(converted)).any())
    else:
        lost = not np.array_equal(converted, array)
    if lost:
        raise InvalidInput(f"input '{spec.name}' has a number out of the range of {spec.datatype}")
    return converted


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
