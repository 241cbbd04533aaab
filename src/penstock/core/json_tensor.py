"""Tensors in JSON: into arrays, strictly, and back.

Two ways in. `array_of_json` reads the text of a tensor whose datatype and shape are stated beside it, as in V2; it is
the fast one. `array_of_value` makes a tensor of a parsed value whose shape is only in its nesting, guided by what the
model takes. Both refuse a float for an integer, true for 1, text for a number, null, and numbers out of range:
nothing is ever rounded or wrapped.
"""

from __future__ import annotations

import base64
import binascii
import functools
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from penstock.core.errors import InvalidInput, TooLarge
from penstock.core.json_body import read_json
from penstock.core.simd_json import numbers_of_json
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec

MAX_RANK: Final = 64  # numpy's own

# struct's letters: it checks ranges, and packs a list in half the time that numpy takes to read it.
_PACK: Final = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
BINARY_ONLY: Final = ("FP16", "BF16")
_LONG_TEXT_BYTES: Final = 4096  # about 1,000 numbers, above which simdjson is faster in spite of its set-up


def check_shape(name: str, datatype: str, shape: tuple[int, ...], limit_bytes: int) -> int:
    """The number of elements of a stated shape that can be held.

    Raises:
        InvalidInput: unknown datatype, a negative axis, too many axes.
        TooLarge: more than `limit_bytes`. Empty tensors with huge axes count too, as numpy cannot hold them.
    """
    dtype = NUMPY_OF.get(datatype)
    if dtype is None:
        raise InvalidInput(f"input '{name}' has unknown datatype '{datatype}'; one of {', '.join(NUMPY_OF)}")
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"input '{name}' has {len(shape)} axes, at most {MAX_RANK} are allowed")
    if shape and min(shape) < 0:
        raise InvalidInput(f"input '{name}' has shape {list(shape)}, an axis cannot be negative")
    count = math.prod(shape)
    held = count or math.prod(axis or 1 for axis in shape)
    if held * dtype.itemsize > limit_bytes:
        raise TooLarge(f"input '{name}' takes {held * dtype.itemsize} bytes, at most {limit_bytes} are allowed")
    return count


def array_of_json(
    name: str, raw: msgspec.Raw, datatype: str, shape: tuple[int, ...], limit_bytes: int, max_depth: int = MAX_RANK
) -> Array:
    """The array of JSON text: a flat list in row-major order, or lists nested just as `shape` says. Read-only.

    Raises:
        InvalidInput: the text does not fit datatype and shape; FP16 and BF16, which have no JSON form in V2.
        TooLarge: as `check_shape`.
    """
    count = check_shape(name, datatype, shape, limit_bytes)
    if datatype in BINARY_ONLY:
        raise InvalidInput(f"input '{name}': {datatype} has no JSON form, send it as binary data")
    nested = _is_nested(raw)
    if nested and len(shape) < 2:
        raise InvalidInput(f"input '{name}' is not nested as its shape {list(shape)} says")
    depth = len(shape) if nested else 1
    if depth > max_depth:
        raise InvalidInput(f"input '{name}' is nested {depth} deep, at most {max_depth} levels are allowed")
    if datatype in _PACK and len(memoryview(raw)) > _LONG_TEXT_BYTES:
        array = numbers_of_json(raw, datatype, shape, nested=nested)
        if array is not None:
            return array
    items: list[Any] = read_json(raw, _decoder(_leaf_kind(datatype), depth), f"input '{name}' data")
    if nested:
        items = _flatten(name, items, shape)
    if len(items) != count:
        raise InvalidInput(f"input '{name}' has {len(items)} elements, its shape {list(shape)} asks for {count}")
    return _pack(name, items, datatype, shape)


def array_of_value(value: object, spec: TensorSpec, *, rows: bool = False) -> Array:
    """The array of a parsed JSON value (a number, text, or lists of them in any regular nesting) for one input.

    Axes that the value leaves out are added where the spec leaves no doubt: a lone row gets its batch axis, a list of
    numbers for `[-1, 1]` becomes a column. With `rows` the value is a list of rows and never a lone one. Bytes are
    written `{"b64": "…"}`.

    Raises:
        InvalidInput: irregular nesting, an element of another kind than the datatype, a number out of range.
    """
    shape: list[int] = []
    level: list[Any] = [value]
    while level and type(level[0]) is list:
        lengths = {len(item) if type(item) is list else -1 for item in level}
        if len(lengths) > 1:
            raise InvalidInput(f"input '{spec.name}' is irregular: lists of different lengths on level {len(shape)}")
        if len(shape) == MAX_RANK:
            raise InvalidInput(f"input '{spec.name}' is nested more than {MAX_RANK} deep")
        shape.append(lengths.pop())
        level = list(itertools.chain.from_iterable(level))
    _check_kinds(spec.name, level, spec.datatype)
    return _pack(spec.name, level, spec.datatype, fit(tuple(shape), spec, rows=rows))


def fit(shape: tuple[int, ...], spec: TensorSpec, *, rows: bool = False) -> tuple[int, ...]:
    """`shape` with axes of length 1 added until it has the rank of `spec`, or as it is if that would not fit."""
    missing = len(spec.shape) - len(shape)
    if missing <= 0:
        return shape
    ones = (1,) * missing
    for candidate in [shape + ones] if rows else [ones + shape, shape + ones]:
        if all(want in (-1, got) for got, want in zip(candidate, spec.shape, strict=True)):
            return candidate
    return shape


def json_of_array(array: Array) -> object:
    """What orjson (with OPT_SERIALIZE_NUMPY) writes as nested lists; bytes that are no text as `{"b64": "…"}`."""
    if array.dtype.kind == "O":
        return _texts(array.tolist())
    return np.ascontiguousarray(array).reshape(array.shape)


def texts_of_array(name: str, array: Array) -> list[str]:
    """The elements of a BYTES array as text, flat.

    Raises:
        InvalidInput: an element is not UTF-8.
    """
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f"output '{name}' holds bytes that are no UTF-8 text; ask for it as binary data") from None


def _is_nested(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)
    if len(view) < 2 or view[0] != 0x5B:  # "["
        return False
    at = 1
    while at < len(view) and view[at] in b" \t\r\n":
        at += 1
    return at < len(view) and view[at] == 0x5B


def _leaf_kind(datatype: str) -> type:
    if datatype == "BYTES":
        return str
    if datatype == "BOOL":
        return bool
    return float if datatype[0] in "FB" else int


@functools.cache
def _decoder(leaf: type, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = leaf
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _flatten(name: str, items: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(items) != shape[0]:
        raise InvalidInput(f"input '{name}' has {len(items)} rows, its shape is {list(shape)}")
    for axis in shape[1:]:
        if not set(map(len, items)) <= {axis}:
            raise InvalidInput(f"input '{name}' is not nested as its shape {list(shape)} says")
        items = list(itertools.chain.from_iterable(items))
    return items


def _pack(name: str, items: Sequence[Any], datatype: str, shape: tuple[int, ...]) -> Array:
    """`items` are of the datatype's kind; only ranges are left to check."""
    if datatype == "BYTES":
        texts = np.empty(len(items), dtype=object)
        texts[:] = [item if type(item) is bytes else item.encode() for item in items]
        return texts.reshape(shape)
    if datatype == "BOOL":
        return np.frombuffer(bytes(items), dtype=np.bool_).reshape(shape)
    try:
        packed = _packer(len(items), _PACK.get(datatype, "f"))(*items)
    except (struct.error, OverflowError):
        raise InvalidInput(f"input '{name}' has a number out of the range of {datatype}") from None
    return np.ndarray(shape, NUMPY_OF[datatype], packed)  # a third cheaper than frombuffer and reshape


@functools.lru_cache(256)
def _packer(count: int, letter: str) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}{letter}").pack


_ALLOWED: Final[dict[type, frozenset[type]]] = {
    str: frozenset({str, bytes}),
    bool: frozenset({bool}),
    int: frozenset({int}),
    float: frozenset({int, float}),
}
_WORDS: Final = {bool: "true or false", dict: "an object", str: "text", float: "a float", type(None): "null"}


def _check_kinds(name: str, items: list[Any], datatype: str) -> None:
    leaf = _leaf_kind(datatype)
    if leaf is str:
        items[:] = [_from_base64(name, item) if type(item) is dict else item for item in items]
    wrong = set(map(type, items)) - _ALLOWED[leaf]
    if wrong:
        found = " and ".join(sorted(_WORDS.get(kind, kind.__name__) for kind in wrong))
        raise InvalidInput(f"input '{name}' takes {datatype}, but the data holds {found}")


def _from_base64(name: str, item: dict[str, object]) -> bytes:
    text = item.get("b64")
    if len(item) != 1 or not isinstance(text, str):
        raise InvalidInput(f'input \'{name}\' holds an object that is not {{"b64": "…"}}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"input '{name}' holds text under \"b64\" that is no base64") from None


def _texts(value: object) -> object:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return str(value)
