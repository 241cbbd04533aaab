"""The tensors of a folder's safetensors files as float32 or float16, one at a time, without torch.

Source: https://github.com/huggingface/safetensors (format: length, JSON header, bytes).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import LoadError

_MOST_HEADER_BYTES = 100 << 20  # the format's own limit
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    type: str
    shape: tuple[int, ...]
    start: int
    end: int


class Weights:
    """All tensors of `*.safetensors` below a folder. Raises: LoadError for a broken file."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, _Place] = {}
        for path in files(folder):
            self._places.update(_header(path))

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """A copy, float32 unless the file has float16. Raises: LoadError: it is missing, or of whole numbers."""
        place = self._place(name)
        if place.type not in _TYPES:
            raise LoadError(
                f"{place.path.name}: tensor {name} has the type {place.type}; {', '.join(_TYPES)} can be read"
            )
        kind = np.dtype(_TYPES[place.type])
        count = (place.end - place.start) // kind.itemsize
        found = np.fromfile(place.path, kind, count, offset=place.start).reshape(place.shape)
        if place.type == "BF16":
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found if place.type == "F16" else found.astype(np.float32)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise LoadError(f"the weights lack the tensor {name}")
        return self._places[name]


def files(folder: Path) -> list[Path]:
    """The folder's safetensors files. Those that an index does not name (copies in another format) are left out."""
    listed = sorted(folder.glob("*.safetensors"))
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
        named = {Path(str(name)).name for name in index["weight_map"].values()}
    except FileNotFoundError:
        one = folder / "model.safetensors"
        return [one] if one in listed else listed
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LoadError(f"model.safetensors.index.json cannot be read: {error}") from error
    if missing := named - {path.name for path in listed}:
        raise LoadError(f"the folder lacks {', '.join(sorted(missing))}, which its index names")
    return [path for path in listed if path.name in named]


def _header(path: Path) -> dict[str, _Place]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise LoadError(f"{path.name} is no whole safetensors file")
        try:
            listed = json.loads(file.read(length))
            found = {
                name: _placed(path, name, entry, 8 + length, size)
                for name, entry in listed.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LoadError(f"{path.name}: its header cannot be read: {error}") from error
    return found


def _placed(path: Path, name: str, entry: dict[str, Any], base: int, size: int) -> _Place:
    kind = str(entry["dtype"])
    shape = tuple(int(axis) for axis in entry["shape"])
    start, end = (base + int(at) for at in entry["data_offsets"])
    needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(_TYPES[kind]).itemsize if kind in _TYPES else end - start
    if min((*shape, start - base, needed)) < 0 or end > size or end - start != needed:
        raise LoadError(f"{path.name}: tensor {name} does not lie where the header says")
    return _Place(path, kind, shape, start, end)
