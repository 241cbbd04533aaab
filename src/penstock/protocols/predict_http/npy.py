"""numpy's .npy files from strangers: the header is parsed as data, its promises are checked, pickles are refused."""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.json_tensor import MAX_RANK
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, datatype_of, normal

MAGIC: Final = b"\x93NUMPY"
_HEADER_BYTES: Final = 4096  # real headers are 128

# The header is a Python dict. numpy's reader hands it to Python's parser; what writers really write is this plain.
# Source: NEP 1 and numpy.lib.format, which fix the three keys and, in what they write, their order.
_HEADER: Final = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?[a-zA-Z]\d{0,9})',\s*'fortran_order':\s*(True|False),\s*"
    rb"'shape':\s*\(\s*((?:\d{1,19}\s*,\s*)*(?:\d{1,19}\s*)?)\)\s*,?\s*\}\s*"
)


def read_npy(data: memoryview, spec: TensorSpec) -> Array:
    """The array of a .npy file as the datatype of `spec`; a view of `data` where nothing has to be converted.

    Numbers are converted only where no value changes but by rounding of floats: a float64 file serves a FP32 model.

    Raises:
        InvalidInput: broken file, Python objects in it, values that the datatype does not hold.
    """
    dtype, fortran, shape, start = _header(data)
    if dtype.hasobject or dtype.kind not in "biufSU" or dtype.itemsize == 0:
        raise InvalidInput(f"the .npy file holds {dtype}; numbers, truth values and texts of fixed width can be read")
    values = data[start:]
    if len(shape) > MAX_RANK or math.prod(shape) * dtype.itemsize != len(values):
        raise InvalidInput(f"the .npy file promises {dtype} of shape {shape}, but holds {len(values)} bytes of data")
    try:
        array: Array = np.frombuffer(values, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError):  # an empty array with an axis that numpy cannot count
        raise InvalidInput(f"the .npy file has the shape {shape}") from None
    try:
        return _as(array, spec)
    except ValueError:  # how numpy reports code points that do not exist
        raise InvalidInput("the .npy file holds text that is no Unicode") from None


def _header(data: memoryview) -> tuple[np.dtype[np.generic], bool, tuple[int, ...], int]:
    """The dtype, whether columns come first, the shape, and where the values start."""
    if len(data) < len(MAGIC) + 6 or data[len(MAGIC)] not in (1, 2, 3):
        raise InvalidInput("the body begins like a .npy file, but is none of format 1, 2 or 3")
    size_bytes = 2 if data[len(MAGIC)] == 1 else 4  # format 1.0 has a short length
    at = len(MAGIC) + 2 + size_bytes
    length = int.from_bytes(data[at - size_bytes : at], "little")
    match = _HEADER.fullmatch(data[at : at + length]) if length <= _HEADER_BYTES else None
    if match is None:
        raise InvalidInput("the body begins like a .npy file, but its header cannot be read")
    try:
        dtype = np.dtype(match[1].decode())
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"the .npy file holds {match[1].decode()!r}, which numpy does not know") from None
    return dtype, match[2] == b"True", tuple(map(int, re.findall(rb"\d+", match[3]))), at + length


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
