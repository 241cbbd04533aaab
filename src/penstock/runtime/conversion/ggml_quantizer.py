"""Writes a GGUF file with its weights quantised by llama.cpp's own code (`ggml_quantize_chunk`, which the package
xllamacpp exports), tensor by tensor: what is held in memory is one tensor.

Which tensor becomes what is llama.cpp's choice: vectors stay f32, the output (or the embedding that serves as it) gets
more bits, and so do values and the second half of the feed-forward in the K mixtures. Source: llama-quant.cpp.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import InvalidInput, LoadError
from penstock.language.gguf import BLOCKS

# Name → the type of most tensors, and `general.file_type` (enum llama_ftype of llama.h).
KINDS: Mapping[str, tuple[str, int]] = {
    "f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q6_k": ("Q6_K", 18),
    "q5_k_m": ("Q5_K", 17), "q5_1": ("Q5_1", 9), "q5_0": ("Q5_0", 8), "q4_k_m": ("Q4_K", 15), "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}  # fmt: skip
_NUMBERS = {name: number for number, (name, _, _) in BLOCKS.items()}
_BLOCK_SIZES = {name: (elements, size) for name, elements, size in BLOCKS.values()}
# Where a row is no multiple of 256. Source: tensor_type_fallback of llama-quant.cpp.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_WHOLE = ("F32", "F16", "BF16")


def type_of(name: str, shape: tuple[int, ...], kind: str, layers: int, tied: bool) -> str:
    """The type that tensor `name` gets in a file of `kind`. `shape`: the slowest axis first."""
    main = KINDS[kind][0]
    if len(shape) < 2 or main == "F32":
        return "F32"
    if main in _WHOLE:
        return main
    chosen = main
    if (name == "output.weight" or (tied and name == "token_embd.weight")) and main != "Q8_0":
        chosen = "Q6_K"
    elif kind.endswith("_k_m") and name.startswith("blk.") and ("attn_v.weight" in name or "ffn_down" in name):
        index, eighth = int(name.split(".")[1]), layers // 8
        if index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2:
            chosen = "Q6_K"
    if shape[-1] % _BLOCK_SIZES[chosen][0]:
        chosen = _FALLBACKS.get(chosen, "F16")
    return chosen if shape[-1] % _BLOCK_SIZES[chosen][0] == 0 else "F16"


def quantize(source: Path, target: Path, kind: str, progress: Callable[[str], None]) -> None:
    """Writes `target`, which must not be there.

    Raises:
        InvalidInput: of an unknown kind.
        LoadError: a package is missing.
    """
    if kind not in KINDS:
        raise InvalidInput(f"no GGUF kind {kind!r}; there are {', '.join(KINDS)}")
    for package in ("gguf", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            raise LoadError(f'{package} must be installed to quantise: pip install "penstock[llm]"')
    import gguf

    reader = gguf.GGUFReader(source)
    values = {field.name: field.contents() for field in reader.fields.values()}
    architecture = str(values["general.architecture"])
    layers = int(values.get(f"{architecture}.block_count", 0))
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, values[field.name], field.types[0], sub_type=inner)
    writer.add_file_type(KINDS[kind][1])
    chosen = {}
    for tensor in reader.tensors:
        shape = tuple(int(axis) for axis in reversed(tensor.shape))
        chosen[tensor.name] = made = type_of(tensor.name, shape, kind, layers, tied)
        elements, size = _BLOCK_SIZES[made]
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(np.float32), int(np.prod(shape)) // elements * size,
            gguf.GGMLQuantizationType(_NUMBERS[made]),
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    library = _library()
    for at, tensor in enumerate(reader.tensors, 1):
        made = chosen[tensor.name]
        if tensor.tensor_type == _NUMBERS[made]:
            writer.write_tensor_data(np.ascontiguousarray(tensor.data))
        else:
            writer.write_tensor_data(_made(library, gguf.dequantize(tensor.data, tensor.tensor_type), made))
        if at % 64 == 0:
            progress(f"quantised {at} of {len(reader.tensors)} tensors")
    writer.close()


def _made(library: ctypes.CDLL, weights: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    flat = np.ascontiguousarray(weights, np.float32)
    row = flat.shape[-1]
    elements, size = _BLOCK_SIZES[kind]
    if kind == "F32":
        return flat
    if kind == "F16":
        return flat.astype(np.float16)
    rows = flat.size // row
    made = np.empty(rows * row // elements * size, np.uint8)
    written = library.ggml_quantize_chunk(
        _NUMBERS[kind], flat.ctypes.data_as(ctypes.c_void_p), made.ctypes.data_as(ctypes.c_void_p), 0, rows, row, None
    )
    if written != made.size:
        raise LoadError(f"llama.cpp's quantiser gave {written} bytes of {kind}; {made.size} were expected")
    return made


def _library() -> ctypes.CDLL:
    """ggml, inside xllamacpp's extension module. Source: ggml.h, ggml_quantize_chunk."""
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    if spec is None or spec.origin is None:
        raise LoadError('xllamacpp must be installed to quantise: pip install "penstock[llm]"')
    library = ctypes.CDLL(os.fspath(spec.origin))
    try:
        chunk = library.ggml_quantize_chunk
    except AttributeError:
        raise LoadError("this xllamacpp does not export ggml_quantize_chunk; 2026.10 does") from None
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
                      ctypes.c_void_p]  # fmt: skip
    return library
