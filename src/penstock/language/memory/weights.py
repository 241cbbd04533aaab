"""The tensors of a model's files: sizes and kinds out of headers, without reading a weight."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from penstock.core.errors import InvalidInput
from penstock.language.gguf import Header
from penstock.language.memory.shape import Tensor

# Bits of one element. Source: the safetensors format's dtypes.
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "C64": 64,
}  # fmt: skip
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_DATA = re.compile(rb'<data element_type="([a-z0-9_]+)" shape="([0-9, ]*)" offset="\d+" size="(\d+)"')
_NAME = re.compile(rb'<layer id="\d+" name="([^"]*)" type="Const"')
_CACHE_PRECISION = re.compile(rb'<KV_CACHE_PRECISION value="([A-Za-z0-9_]+)"')


def of_gguf(header: Header) -> tuple[Tensor, ...]:
    """The tensors of a GGUF file."""
    return tuple(
        Tensor(one.name, one.type.lower(), one.elements, one.size_bytes, len(one.shape) > 1) for one in header.tensors
    )


def of_folder(folder: Path) -> tuple[tuple[Tensor, ...], int]:
    """The tensors of a folder's safetensors files, and the bytes of these files.

    With an index only the files that it names count, as loaders do it.

    Raises:
        InvalidInput: a file is missing, or its header is unreadable or impossible.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        from penstock.language.files import read_json

        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise InvalidInput(f"{index.name} has no weight_map")
        names = sorted({str(name) for name in named.values()})
        if wrong := [name for name in names if Path(name).name != name]:
            raise InvalidInput(f"{index.name} names {wrong[0]!r}, which is no file beside it")
    elif (folder / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if missing := [name for name in names if not (folder / name).exists()]:
        raise InvalidInput(f"{folder.name} lacks {', '.join(missing)}, which its index names")
    tensors = tuple(tensor for name in names for tensor in _safetensors(folder / name))
    return tensors, sum((folder / name).stat().st_size for name in names)


def _safetensors(path: Path) -> Iterator[Tensor]:
    """Source: https://github.com/huggingface/safetensors (8 bytes of length, then JSON)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
            raise InvalidInput(f"{path.name} is no whole safetensors file: its header claims {length} of {size} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path.name} is no safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise InvalidInput(f"{path.name} is no safetensors file: its header is no JSON object")
    for name, told in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape = told["dtype"], told["shape"]
            start, end = told["data_offsets"]
            elements = math.prod(int(axis) for axis in shape)
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"its data lies at {start} to {end} of {size - 8 - length} bytes")
            if kind in _BITS and math.ceil(elements * _BITS[kind] / 8) != end - start:
                raise ValueError(f"{elements} numbers of {kind} do not take {end - start} bytes")
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidInput(f"{path.name}: tensor {str(name)[:100]} is impossible: {error}") from None
        yield Tensor(str(name), str(kind).lower(), elements, end - start, len(shape) > 1)


def of_openvino(folder: Path) -> tuple[tuple[Tensor, ...], int, str]:
    """The constants of an OpenVINO model, the bytes of its weights' file, and the cache precision it asks for ("")."""
    path = folder / "openvino_model.xml"
    found: list[Tensor] = []
    cache, name = "", ""
    with path.open("rb") as file:
        for line in file:
            if match := _NAME.search(line):
                name = match[1].decode("utf-8", "replace")
            if match := _DATA.search(line):
                axes = [int(axis) for axis in match[2].split(b",") if axis.strip()]
                kind = match[1].decode()
                found.append(Tensor(name, kind, math.prod(axes), int(match[3]), len(axes) > 1))
            if match := _CACHE_PRECISION.search(line):
                cache = match[1].decode().lower()
    return tuple(found), path.with_suffix(".bin").stat().st_size, cache
