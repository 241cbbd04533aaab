"""ONNX values and ours: types, specs, and the three kinds that numpy or the protocols lack (text, bfloat16, maps)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import LoadError
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, bf16_from_wire, bf16_to_wire, normal

_DATATYPES = {
    "tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(double)": "FP64", "tensor(bfloat16)": "BF16",
    "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64",
    "tensor(bool)": "BOOL", "tensor(string)": "BYTES",
}  # fmt: skip
_MAPS = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def spec(node: Any, what: str) -> TensorSpec:
    """The TensorSpec of a session's input or output; symbolic axes are -1.

    Raises:
        LoadError: a type that no protocol carries.
    """
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        advice = "; convert the model with zipmap=False" if "map" in node.type else ""
        raise LoadError(f"{what} '{node.name}' is a {node.type}, which no inference protocol can carry{advice}")
    return TensorSpec(node.name, datatype, tuple(axis if isinstance(axis, int) else -1 for axis in node.shape))


def is_map(node: Any) -> bool:
    """Whether it is what sklearn-onnx's ZipMap makes: a list of {class: probability}, one per row."""
    return node.type in _MAPS


def map_spec(node: Any, classes: Mapping[str, Sequence[object]]) -> TensorSpec:
    """The spec of the (n, classes) float32 tensor that a map becomes."""
    found = classes.get(node.name, ())
    return TensorSpec(node.name, "FP32", (-1, len(found) or -1), labels=tuple(str(item) for item in found))


def probe_maps(session: Any) -> dict[str, tuple[object, ...]]:
    """The classes of each map output, in the model's order, learnt by running one row of zeros; {} if it refuses."""
    feed: dict[str, Array] = {}
    for node in session.get_inputs():
        known = spec(node, "input")
        shape = tuple(1 if axis < 0 else axis for axis in known.shape)
        feed[node.name] = np.full(shape, "", object) if known.datatype == "BYTES" else np.zeros(
            shape, NUMPY_OF[known.datatype]
        )  # fmt: skip
    names = [node.name for node in session.get_outputs() if is_map(node)]
    try:
        results = session.run(names, feed)
    except Exception:  # a model that refuses zeros is still a good model: its classes stay unknown until it answers
        return {}
    return {name: tuple(rows[0]) for name, rows in zip(names, results, strict=True) if rows}


def map_converter(classes: Sequence[object]) -> Callable[[Sequence[Mapping[Any, float]]], Array]:
    """A function from a list of {class: value} to (n, classes) float32, columns in the order of `classes`."""

    def convert(rows: Sequence[Mapping[Any, float]]) -> Array:
        columns = classes or (tuple(rows[0]) if rows else ())
        return np.array([[row[column] for column in columns] for row in rows], np.float32).reshape(-1, len(columns))

    return convert


def to_bytes(array: Array) -> Array:
    """Text outputs as `bytes` objects."""
    return normal(np.asarray(array, dtype=object))


def bf16_runner(
    session: Any, inputs: Sequence[TensorSpec]
) -> Callable[[Sequence[str], Mapping[str, Array]], list[Array]]:
    """What `session.run` would be if numpy had bfloat16: float32 arrays stand for it on both sides. On the CPU only."""
    import onnxruntime

    widened = {item.name for item in inputs if item.datatype == "BF16"}
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    make_typed = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type

    def run(names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        given = {
            name: make_typed(np.frombuffer(bf16_to_wire(array), "<u2").reshape(array.shape), _BFLOAT16)
            if name in widened
            else make(np.ascontiguousarray(array))
            for name, array in feed.items()
        }
        return [_array(value) for value in session.run_with_ort_values(list(names), given)]

    return run


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    size_bytes = 2 * int(np.prod(shape, dtype=np.int64))
    return bf16_from_wire(ctypes.string_at(value.data_ptr(), size_bytes)).reshape(shape)


def opsets(path: Path) -> str:
    """The operator sets a model file asks for, such as "ai.onnx 17, ai.onnx.ml 3"; "" when they cannot be read.

    A walk over the outermost protobuf fields only (ModelProto.opset_import is field 8, OperatorSetIdProto has domain 1
    and version 2): the weights are skipped, not read, and the onnx package is not needed.
    Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    """
    found: list[str] = []
    try:
        with path.open("rb") as file:
            while head := file.read(1):
                number, kind = _varint(file, head)
                if kind == 0:
                    _varint(file, file.read(1), whole=True)
                elif kind == 2:
                    size, _ = _varint(file, file.read(1), whole=True)
                    if number == 8:
                        found.append(_opset(file.read(size)))
                    else:
                        file.seek(size, 1)
                else:
                    return ""
    except (OSError, IndexError, ValueError):
        return ""
    return ", ".join(found)


def _varint(file: Any, head: bytes, whole: bool = False) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = head[0]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value, 0) if whole else (value >> 3, value & 7)
        if shift > 63:
            raise ValueError("varint too long")
        head = file.read(1)


def _opset(data: bytes) -> str:
    import io

    file, domain, version = io.BytesIO(data), "", 0
    while head := file.read(1):
        number, kind = _varint(file, head)
        value, _ = _varint(file, file.read(1), whole=True)
        if kind == 2:
            text = file.read(value).decode()
            domain = text if number == 1 else domain
        elif number == 2:
            version = value
    return f"{domain or 'ai.onnx'} {version}"


def device_memory_bytes(index: int) -> int | None:
    """The memory of CUDA device `index`, from the driver; None when there is none to ask."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, total = ctypes.c_int(), ctypes.c_size_t()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index):
        return None
    return None if cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) else total.value
