"""How far apart two answers of a model are: their bodies, number by number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

# What says who answered, not what was answered.
IGNORED = frozenset({"id", "model_name", "model_version"})
RELATIVE, ABSOLUTE = 1e-4, 1e-6  # float32 sums in another order differ by about as much
_SCORES = frozenset({"scores", "logits", "probabilities", "probs"})
_DEPTH = 32
# V2's types whose bytes numpy reads as they are.
_BINARY = {
    "FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Body:
    """An answer's body. `json_bytes` is V2's `Inference-Header-Content-Length`, where one was sent."""

    data: bytes
    json_bytes: int | None = None


@dataclass(slots=True)
class Difference:
    """Of two bodies. `max_rel` is |a − b| / max(|a|, |b|), at most 2."""

    equal: bool = True  # within the tolerance
    unlike: str = ""  # why they cannot be compared number by number: "outputs.0.shape: [3] and [4]"
    values: int = 0  # numbers compared
    max_abs: float = 0.0
    max_rel: float = 0.0
    ranked: int = 0  # rows that look like scores: floats from 0 to 1 that sum to 1, or so named
    agreed: int = 0  # those of them whose largest stands at the same place in both

    @property
    def badness(self) -> float:
        """What examples are ordered by: unlike answers first, then another decision, then the largest difference."""
        return 4.0 * bool(self.unlike) + 2.0 * (self.agreed < self.ranked) + min(1.0, self.max_rel)


def difference(real: Body, shadow: Body) -> Difference:
    """How two answers differ. JSON and V2's binary tensors are compared by value, all else by its bytes."""
    found = Difference()
    if real.data == shadow.data and real.json_bytes == shadow.json_bytes:
        trees = _tree(real), None
        if trees[0] is not None:
            _compare(trees[0], trees[0], "", found, 0)
        return found
    one, other = _tree(real), _tree(shadow)
    if one is None or other is None:
        found.equal, found.unlike = False, "no JSON, and other bytes"
    else:
        _compare(one, other, "", found, 0)
    return found


def _tree(body: Body) -> object | None:
    """The JSON value of a body, with V2's binary tensors in their places; None where it is none."""
    head = body.data if body.json_bytes is None else body.data[: body.json_bytes]
    try:
        tree = _parsed(head)
        if body.json_bytes is not None and isinstance(tree, dict):
            _place_binary(tree, body.data[body.json_bytes :])
    except (ValueError, RecursionError):  # also of Unicode, and of sizes that do not fit their shapes
        return None
    return tree


def _parsed(text: bytes) -> object:
    try:
        return orjson.loads(text)  # four times as fast, and other threads wait for it
    except orjson.JSONDecodeError:
        return json.loads(text)  # NaN, Infinity and long integers, which models do answer


def _place_binary(tree: Mapping[str, object], rest: bytes) -> None:
    outputs = tree.get("outputs")
    for output in outputs if isinstance(outputs, list) else ():
        parameters = output.get("parameters") if isinstance(output, dict) else None
        size = parameters.pop("binary_data_size", None) if isinstance(parameters, dict) else None
        if isinstance(size, int) and 0 <= size <= len(rest):
            kind = _BINARY.get(str(output.get("datatype")))
            output["data"] = np.frombuffer(rest[:size], kind) if kind else rest[:size].hex()
            rest = rest[size:]


def _compare(one: object, other: object, where: str, found: Difference, depth: int) -> None:
    if found.unlike:
        return
    if depth > _DEPTH:
        found.equal, found.unlike = False, f"{where}: nested too deep"
    elif isinstance(one, dict) and isinstance(other, dict):
        _compare_mappings(one, other, where, found, depth)
    elif (numbers := _numbers(one)) is not None and (others := _numbers(other)) is not None:
        _compare_numbers(numbers, others, where, found)
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            found.equal, found.unlike = False, f"{where}: {len(one)} and {len(other)} items"
        for place, (a, b) in enumerate(zip(one, other, strict=False)):
            _compare(a, b, f"{where}.{place}".lstrip("."), found, depth + 1)
    elif type(one) is not type(other):
        found.equal, found.unlike = False, f"{where}: {type(one).__name__} and {type(other).__name__}"
    elif one != other:
        found.equal = False  # two texts, or true and false: comparable, and not the same
        found.max_rel = max(found.max_rel, 1.0)


def _compare_mappings(
    one: Mapping[str, object], other: Mapping[str, object], where: str, found: Difference, depth: int
) -> None:
    ignored = IGNORED if depth == 0 else frozenset[str]()
    keys = one.keys() - ignored
    if keys != other.keys() - ignored:
        found.equal = False
        found.unlike = f"{where}: other keys, {', '.join(sorted(keys ^ (other.keys() - ignored)))}"[:200]
        return
    shape = one.get("shape")
    for key in sorted(keys):
        a, b = one[key], other[key]
        inside = f"{where}.{key}".lstrip(".")
        if key == "data" and isinstance(shape, list) and shape == other.get("shape"):
            a, b = _shaped(a, shape), _shaped(b, shape)
            inside = f"{inside}.{one.get('name', '')}"
        _compare(a, b, inside, found, depth + 1)


def _shaped(data: object, shape: list[object]) -> object:
    """Numbers in the shape that stands beside them; V2 sends them flat."""
    numbers = _numbers(data)
    sizes = [size for size in shape if isinstance(size, int) and size >= 0]
    if numbers is None or len(sizes) != len(shape) or numbers.size != np.prod(sizes, dtype=np.float64):
        return data
    return numbers.reshape(sizes)


def _numbers(value: object) -> NDArray[np.generic] | None:
    """A number, or a regular nest of lists of them, as an array; None for all else (booleans and texts too)."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, list)) or value == []:
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind in "iuf" else None


def _compare_numbers(one: NDArray[np.generic], other: NDArray[np.generic], where: str, found: Difference) -> None:
    if one.shape != other.shape:
        found.equal, found.unlike = False, f"{where}: shapes {list(one.shape)} and {list(other.shape)}"
        return
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        apart = np.where(np.isnan(apart), np.inf, apart)
        largest = np.maximum(np.abs(a), np.abs(b))
        relative = np.where(apart == 0, 0.0, np.where(np.isfinite(apart), apart / largest, 2.0))
    finite = apart[np.isfinite(apart)]
    found.values += a.size
    found.max_abs = max(found.max_abs, float(finite.max(initial=0.0)))
    found.max_rel = max(found.max_rel, float(relative.max(initial=0.0)))
    if np.any(np.isinf(apart) | (apart > ABSOLUTE + RELATIVE * largest)):
        found.equal = False
    if a.ndim >= 1 and a.shape[-1] >= 2 and a.size and one.dtype.kind == "f" and _scores(a, where):
        rows, others = a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1])
        found.ranked += len(rows)
        found.agreed += int(np.sum(rows.argmax(axis=1) == others.argmax(axis=1)))


def _scores(values: NDArray[np.float64], where: str) -> bool:
    if not _SCORES.isdisjoint(where.lower().split(".")):
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        inside = bool(np.all((values >= 0) & (values <= 1)))
        return inside and bool(np.all(np.abs(values.sum(axis=-1) - 1) < 1e-3))
