"""Tensors are numpy arrays; a TensorSpec says what one may look like.

Two datatypes have no numpy type of their own. BYTES is an object array of `bytes`. BF16 is a float32 array in
memory (widening is exact) and 16 bits on a wire, so models and user code never meet a type numpy lacks.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock.core.errors import InvalidInput

Array = npt.NDArray[np.generic]

# Open Inference Protocol V2 datatype -> numpy type in memory.
NUMPY_OF: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<f4"),
    "BYTES": np.dtype(object),
}

_DATATYPE_OF: dict[np.dtype[np.generic], str] = {v: k for k, v in NUMPY_OF.items() if k != "BF16"}

# The short spelling of declarations such as "f4[n, 4]".
_SHORT = {
    "bool": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64",
    "i1": "INT8", "i2": "INT16", "i4": "INT32", "i8": "INT64",
    "f2": "FP16", "f4": "FP32", "f8": "FP64", "bf2": "BF16", "str": "BYTES", "bytes": "BYTES",
}  # fmt: skip
_AXIS_DIGITS = 18  # any axis that 64 bits can count
_DECLARATION = re.compile(r"^\s*(\w+)\s*(?:\[([^\]]*)\])?\s*(\?)?\s*$")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one named tensor may look like. `shape` counts every axis, axis 0 the batch's too; -1 is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    labels: tuple[str, ...] = ()  # class names of an output's last axis, for the classification extension

    def check(self, array: Array) -> None:
        """Nothing, when `array` fits.

        Raises:
            InvalidInput: the datatype or the shape differs; the message shows both.
        """
        if array.dtype != NUMPY_OF[self.datatype]:
            raise InvalidInput(
                f"input '{self.name}' has datatype {datatype_of(array)}, the model expects {self.datatype}"
            )
        shape = array.shape
        if len(shape) != len(self.shape) or any(
            want not in (-1, got) for got, want in zip(shape, self.shape, strict=True)
        ):
            raise InvalidInput(
                f"input '{self.name}' has shape {list(shape)}, the model expects {list(self.shape)} (-1 is any length)"
            )


def parse_spec(name: str, declaration: str) -> TensorSpec:
    """The TensorSpec of a declaration: `f4[n, 4]`, `FP32[-1,4]`, `str[n]`, `f4[n]?` (optional). A word is any length.

    Raises:
        InvalidInput: the declaration cannot be read.
    """
    match = _DECLARATION.match(declaration)
    datatype = match and (_SHORT.get(match[1].lower()) or (match[1].upper() if match[1].upper() in NUMPY_OF else None))
    axes = [axis.strip() for axis in (match[2] or "").split(",") if axis.strip()] if match else []
    if not match or not datatype or any(axis.lstrip("-").isdigit() and len(axis) > _AXIS_DIGITS for axis in axes):
        raise InvalidInput(
            f"cannot read the declaration {declaration!r} of tensor '{name}': "
            f"write a type ({', '.join(_SHORT)}) and a shape, such as 'f4[n, 4]'"
        )
    shape = tuple(int(axis) if re.fullmatch(r"-?\d+", axis) else -1 for axis in axes)
    return TensorSpec(name, datatype, shape, optional=bool(match[3]))


def datatype_of(array: Array) -> str:
    """The V2 datatype name of a numpy array (never BF16: that is a matter of the spec).

    Raises:
        InvalidInput: numpy types that no protocol can carry (complex, dates, records).
    """
    kind = array.dtype.kind
    if kind in "OSU":
        return "BYTES"
    try:
        return _DATATYPE_OF[array.dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidInput(f"numpy type {array.dtype} has no datatype in the protocol") from None


def normal(array: Array) -> Array:
    """`array` as the wire wants it: C order, little endian, text and fixed-width bytes as objects of `bytes`."""
    kind = array.dtype.kind
    if kind in "OSU":
        flat = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
        if kind == "O" and flat == array.ravel().tolist() and array.flags.c_contiguous:
            return array
        out = np.empty(len(flat), dtype=object)
        out[:] = flat
        return out.reshape(array.shape)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def bytes_to_wire(array: Array) -> bytes:
    """A BYTES array in V2's binary form: each element a 4-byte little-endian length and its bytes, row major."""
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        data = item if isinstance(item, bytes) else str(item).encode()
        parts.append(struct.pack("<I", len(data)))
        parts.append(data)
    return b"".join(parts)


def bytes_from_wire(data: bytes | memoryview, count: int) -> Array:
    """`count` elements of V2's binary BYTES form, flat.

    Raises:
        InvalidInput: the lengths do not add up to `data`, or there are more or fewer elements.
    """
    view = memoryview(data)
    size, at = len(view), 0
    out = np.empty(min(count, size // 4 + 1), dtype=object)
    index = 0
    while at < size:
        if index >= count or at + 4 > size:
            break
        (length,) = struct.unpack_from("<I", view, at)
        at += 4
        if length > size - at:
            raise InvalidInput(f"BYTES element {index} claims {length} bytes, {size - at} are left")
        out[index] = bytes(view[at : at + length])
        at += length
        index += 1
    if index != count or at != size:
        raise InvalidInput(f"BYTES data holds {index} elements in {at} of {size} bytes, the shape asks for {count}")
    return out


def bf16_to_wire(array: Array) -> bytes:
    """float32 values rounded to BF16 (nearest, ties to even, NaN kept), 2 bytes each, little endian."""
    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(array), quiet_nan, rounded).astype("<u2").tobytes()


def bf16_from_wire(data: bytes | memoryview) -> Array:
    """The float32 values of raw BF16 bytes, flat; exact."""
    return (np.frombuffer(data, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4")


def to_wire(array: Array, datatype: str) -> bytes | memoryview:
    """The raw little-endian bytes of `array` as `datatype`; a view where no conversion is needed."""
    if datatype == "BYTES":
        return bytes_to_wire(array)
    if datatype == "BF16":
        return bf16_to_wire(array)
    return normal(array).data.cast("B") if array.size else b""


def from_wire(data: bytes | memoryview, datatype: str, shape: tuple[int, ...]) -> Array:
    """The array of raw little-endian bytes; shares `data`'s memory where it can, and is then read-only as `data` is.

    Raises:
        InvalidInput: unknown datatype, a negative axis, or a size that does not fit the shape.
    """
    dtype = NUMPY_OF.get(datatype)
    if dtype is None:
        raise InvalidInput(f"unknown datatype {datatype!r}; one of {', '.join(NUMPY_OF)}")
    count = element_count(shape)
    if datatype == "BYTES":
        return bytes_from_wire(data, count).reshape(shape)
    item_bytes = 2 if datatype == "BF16" else dtype.itemsize
    if len(data) != count * item_bytes:
        raise InvalidInput(
            f"{len(data)} bytes of data for shape {list(shape)} of {datatype}, which takes {count * item_bytes}"
        )
    if datatype == "BF16":
        return bf16_from_wire(data).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def element_count(shape: tuple[int, ...]) -> int:
    """The number of elements of a concrete shape, in Python integers (no overflow).

    Raises:
        InvalidInput: an axis is negative.
    """
    count = 1
    for axis in shape:
        if axis < 0:
            raise InvalidInput(f"shape {list(shape)} has a negative axis")
        count *= axis
    return count
