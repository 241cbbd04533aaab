"""Writes a GGUF file with its weights quantised by llama.cpp's own code (`ggml_quantize_chunk`, which the package
xllamacpp exports), tensor by tensor: what is held in memory is one tensor.

Which tensor becomes what is llama.cpp's choice: vectors stay f32, the output (or the embedding that serves as it) gets
more bits, and so do values and the second half of the feed-forward in the K mixtures. Source: llama-quant.cpp.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import InvalidInput, LoadError
from penstock.language.gguf import BLOCKS
from penstock.runtime.conversion.llama_logits import llama_library

# Name → the type of most tensors, and `general.file_type` (enum llama_ftype of llama.h).
KINDS: Mapping[str, tuple[str, int]] = {
    "f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q6_k": ("Q6_K", 18),
    "q5_k_m": ("Q5_K", 17), "q5_1": ("Q5_1", 9), "q5_0": ("Q5_0", 8), "q4_k_m": ("Q4_K", 15), "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}  # fmt: skip
_NUMBERS = {name: number for number, (name, _, _) in BLOCKS.items()}
_BLOCK_SIZES = {name: (elements, size) for name, elements, size in BLOCKS.values()}
_OURS = (
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
)  # written anew
# Where a row is no multiple of 256. Source: tensor_type_fallback of llama-quant.cpp.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_WHOLE = ("F32", "F16", "BF16")
# Kept as they are: small, and errors in them cost much. Source: tensor_allows_quantization of llama-quant.cpp.
_KEPT = (
    "_norm.", "ffn_gate_inp", "altup", "laurel", "per_layer_model_proj", "position_embd", "token_types", "ssm_conv1d",
    "shortconv.conv", "time_mix_", "attn_rel_b", "patch_embd",
)  # fmt: skip


def type_of(name: str, shape: tuple[int, ...], kind: str, layers: int, tied: bool, own: str) -> str:
    """The type that tensor `name` gets in a file of `kind`. `shape`: the slowest axis first; `own`: its type now."""
    main = KINDS[kind][0]
    if len(shape) < 2 or not name.endswith("weight") or any(word in name for word in _KEPT):
        return own
    if main == "F32":
        return main
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
        LoadError: a package is missing, or a tensor cannot be read.
    """
    if kind not in KINDS:
        raise InvalidInput(f"no GGUF kind {kind!r}; there are {', '.join(KINDS)}")
    if importlib.util.find_spec("gguf") is None:
        raise LoadError('gguf must be installed to quantise: pip install "penstock[llm]"')
    import gguf

    reader = gguf.GGUFReader(source)
    if "split.count" in reader.fields and int(reader.fields["split.count"].contents()) > 1:
        raise InvalidInput(
            f"{source.name} is a part of a model in several files: join them with llama-gguf-split --merge"
        )
    values = {field.name: field.contents() for field in reader.fields.values()}
    architecture = str(values["general.architecture"])
    layers = int(values.get(f"{architecture}.block_count", 0))
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in _OURS:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, values[field.name], field.types[0], sub_type=inner)
    if reader.alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        writer.add_custom_alignment(reader.alignment)
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    chosen = {}
    for tensor in reader.tensors:
        shape = tuple(int(axis) for axis in reversed(tensor.shape))
        chosen[tensor.name] = made = type_of(tensor.name, shape, kind, layers, tied, tensor.tensor_type.name)
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
            try:
                weights = gguf.dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError as error:
                raise LoadError(f"tensor {tensor.name} cannot be read: {error}") from error
            if not np.isfinite(weights).all():
                raise LoadError(f"tensor {tensor.name} holds numbers that are not finite: the file is broken")
            writer.write_tensor_data(_made(library, weights, made))
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
        return np.clip(flat, -65504, 65504).astype(np.float16)  # the ends of f16
    library.ggml_quantize_init(_NUMBERS[kind])
    rows = flat.size // row
    made = np.empty(rows * row // elements * size, np.uint8)
    written = library.ggml_quantize_chunk(
        _NUMBERS[kind], flat.ctypes.data_as(ctypes.c_void_p), made.ctypes.data_as(ctypes.c_void_p), 0, rows, row, None
    )
    if written != made.size:
        raise LoadError(f"llama.cpp's quantiser gave {written} bytes of {kind}; {made.size} were expected")
    return made


def _library() -> ctypes.CDLL:
    """ggml, with its quantiser's tables made. Source: ggml.h, ggml_quantize_chunk."""
    library = llama_library()
    try:
        chunk, initialise = library.ggml_quantize_chunk, library.ggml_quantize_init
    except AttributeError:
        raise LoadError("this xllamacpp does not export ggml_quantize_chunk; 2026.10 does") from None
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
                      ctypes.c_void_p]  # fmt: skip
    initialise.restype, initialise.argtypes = None, [ctypes.c_int]
    return library
