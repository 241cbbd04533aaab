"""The header of a GGUF file: what it says of the model, and where its tensors lie. The weights are not read.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.core.errors import InvalidInput

MAGIC = b"GGUF"

Value = bool | int | float | str | list["Value"]

# Value types of the specification: struct's letter for each number.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 24  # no model has more tensors, or a longer vocabulary
_MOST_DIMENSIONS = 8

# Elements and bytes of one block of each tensor type. Source: ggml.h (enum ggml_type) and ggml-common.h (block_*).
BLOCKS: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file. `shape` as in the file: the fastest axis first."""

    name: str
    shape: tuple[int, ...]
    type: str
    elements: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that a GGUF file says before its weights."""

    version: int
    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def own(self, name: str) -> Value | None:
        """The value of a key of this architecture: `own("block_count")` is of `llama.block_count`."""
        return self.values.get(f"{self.architecture}.{name}")


def read_header(path: Path) -> Header:
    """The header of the file at `path`.

    Raises:
        InvalidInput: it is no GGUF file, of another version, or says something impossible.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
        except (struct.error, ValueError, OverflowError) as error:  # ValueError: also an empty file, and no UTF-8
            raise InvalidInput(f"{path.name} is no whole GGUF file: {error}") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def header(self) -> Header:
        if self._data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"it has version {version}; 2 and 3 can be read")
        tensors, values = int(self._number("Q")), int(self._number("Q"))
        if max(tensors, values) > _MOST_ENTRIES:
            raise ValueError(f"it claims {tensors} tensors and {values} values")
        found = {}
        for _ in range(values):
            key = self._text()
            found[key] = self._value(int(self._number("I")))
        return Header(int(version), found, tuple(self._tensor() for _ in range(tensors)))

    def _tensor(self) -> Tensor:
        name = self._text()
        dimensions = int(self._number("I"))
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name} claims {dimensions} axes")
        shape = tuple(int(self._number("Q")) for _ in range(dimensions))
        number = int(self._number("I"))
        self._number("Q")  # where it lies
        elements = math.prod(shape)
        type_name, block, size = BLOCKS.get(number, (f"type {number}", 1, 1))
        return Tensor(name, shape, type_name, elements, elements // block * size)

    def _value(self, kind: int) -> Value:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"it has a value of unknown type {kind}")
        inner, count = int(self._number("I")), int(self._number("Q"))
        if count > _MOST_ENTRIES or inner == _ARRAY:
            raise ValueError(f"it has an array of {count} values of type {inner}")
        if inner in _NUMBERS:
            form = struct.Struct(f"<{count}{_NUMBERS[inner]}")
            found = form.unpack_from(self._data, self._at)
            self._at += form.size
            return list(found)
        return [self._value(inner) for _ in range(count)]

    def _number(self, letter: str) -> int | float | bool:
        form = struct.Struct("<" + letter)
        (found,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return found  # type: ignore[no-any-return]  # struct tells no types

    def _text(self) -> str:
        length = int(self._number("Q"))
        if length > len(self._data) - self._at:
            raise ValueError(f"it has a text of {length} bytes")
        found = self._data[self._at : self._at + length]
        self._at += length
        return found.decode("utf-8", "replace")
