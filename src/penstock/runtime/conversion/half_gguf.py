"""Writes a GGUF file whose tensors are all f16 or f32: the form that OpenVINO GenAI's reader takes without a loss.

Its reader of quantised blocks changes the weights (the first token of a reply: log-probability -0.90 from Q4_1 and
-1.93 from Q8_0, where transformers in f32 and the same file dequantised by `gguf` give -1.86).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import LoadError
from penstock.language import gguf as header
from penstock.language.files import ModelFiles
from penstock.runtime.conversion import rotation
from penstock.runtime.conversion.safetensors import Weights

# Source: create_from_gguf in gguf_modeling.cpp of OpenVINO GenAI: the architectures whose graph it builds.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "phi3": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # by Hugging Face's model_type

# Source: consts_from_weights in gguf.cpp of OpenVINO GenAI. It ignores all others without a word.
_KNOWN = (
    "token_embd", "output_norm", "output", "attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_gate", "ffn_up", "ffn_down", "attn_q_norm", "attn_k_norm",
)  # fmt: skip

_DIVISORS = "rope_freqs.weight"  # of Llama 3.1: put into the graph by `rotation`
_BIASES = {"qwen2": ("attn_q", "attn_k", "attn_v")}
# Keys of the header that change what is computed. Source: llama-arch.cpp.
_IGNORED = (
    "expert_count", "embedding_scale", "residual_scale", "logit_scale", "attention.scale", "attn_logit_softcapping",
    "final_logit_softcapping", "attention.clamp_kqv", "attention.max_alibi_bias", "rope.scaling.attn_factor",
    "use_parallel_residual",
)  # fmt: skip

Progress = Callable[[str], None]
Make = Callable[[], "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    shape: tuple[int, ...]  # the slowest axis first
    make: Make


def gguf_reason(found: header.Header) -> str:
    """ "" when a GGUF file's architecture can be converted, else why not."""
    architecture = found.architecture
    if architecture not in ARCHITECTURES:
        return f"its architecture is {architecture!r}; {', '.join(ARCHITECTURES)} can be converted"
    if problem := rotation.reason(rotation_of(found)):
        return problem
    if ignored := [key for key in _IGNORED if found.own(key)]:
        return f"its header has {architecture}.{ignored[0]}, which the converter cannot take into account"
    width, heads = found.own("embedding_length"), found.own("attention.head_count")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        return "its header lacks embedding_length or attention.head_count"
    own, turned = found.own("attention.key_length") or width // heads, found.own("rope.dimension_count")
    if turned not in (None, own) or found.own("attention.value_length") not in (None, own):
        return f"its heads have {own} numbers, {turned} of them rotated, and values of another size"
    biases = _BIASES.get(architecture, ())
    strange = [tensor.name for tensor in found.tensors if not _known(tensor.name, biases)]
    return f"it has tensors that the converter does not know: {', '.join(strange[:3])}" if strange else ""


def rotation_of(found: header.Header) -> dict[str, Any]:
    """What a GGUF header says of rotary embeddings, as `rotation` takes it.

    Source: llama_model::load_hparams in llama-model.cpp: what is scaled is so linearly where no type is written, the
    older key counts where the newer one is missing, and a factor of 0 is none.
    """
    told: dict[str, Any] = {"rope_theta": found.own("rope.freq_base") or 10000.0}
    kind, factor = found.own("rope.scaling.type") or "linear", found.own("rope.scaling.factor")
    if factor is None:
        factor = found.own("rope.scale_linear")
    if kind != "none" and (factor or kind != "linear"):
        told["rope_type"], told["factor"] = kind, factor
    return told


def divisors_of(path: Path) -> np.ndarray[Any, Any] | None:
    """What the frequencies of a GGUF file's rotary embedding are divided by (Llama 3.1): float64, or None."""
    import gguf

    reader = gguf.GGUFReader(path)
    found = [tensor for tensor in reader.tensors if tensor.name == _DIVISORS]
    return gguf.dequantize(found[0].data, found[0].tensor_type).astype(np.float64) if found else None


def head_of(found: header.Header) -> tuple[float, int]:
    """The base of a GGUF header's rotary embedding, and the numbers of a head."""
    width, heads = (int(str(found.own(key))) for key in ("embedding_length", "attention.head_count"))
    return float(str(found.own("rope.freq_base") or 10000.0)), int(
        str(found.own("attention.key_length") or width // heads)
    )


def folder_reason(config: Mapping[str, object]) -> str:
    """ "" when a Hugging Face folder with this config.json can be converted, else why not."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        return f"its model_type is {kind!r}; {', '.join(FAMILIES)} can be converted"
    if problem := rotation.reason(rotation.told_of(config)):
        return problem
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']}"
    if config.get("mlp_bias") or (kind != "qwen2" and config.get("attention_bias")):
        return "its layers have biases"
    if config.get("sliding_window") and (kind in ("mistral", "phi3") or config.get("use_sliding_window")):
        return "its attention slides"
    if config.get("quantization_config"):
        return "its weights are quantised in a way of their own"
    return ""


def half_bytes(files: ModelFiles, sources: Sequence[Path]) -> int:
    """About how many bytes the f16 form of a model takes."""
    if files.kind == "gguf":
        return 2 * sum(tensor.elements for tensor in header.read_header(files.path).tensors)
    return sum(path.stat().st_size for path in sources)  # such folders hold two bytes a weight, or four


def from_gguf(source: Path, target: Path, progress: Progress) -> None:
    """Rewrites a GGUF file. Raises: LoadError when a tensor's type is unknown to the `gguf` package."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, _text(reader, "general.architecture"))
    for key in reader.fields.values():
        # The tokenizer is ours; without it the reader has less to misread.
        if key.name.startswith(("GGUF.", "tokenizer.", "split.", "general.")):
            continue
        kind = key.types[0]
        inner = key.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key.name, key.contents(), kind, sub_type=inner)
    _write(writer, (_quantised(tensor) for tensor in reader.tensors if tensor.name != _DIVISORS), progress)


def from_folder(source: Path, config: Mapping[str, Any], target: Path, progress: Progress) -> None:
    """Writes a Hugging Face folder's weights. Raises: LoadError when a tensor has no place in the architecture."""
    import gguf

    family = FAMILIES[config["model_type"]]
    heads = int(config["num_attention_heads"])
    key_heads = int(config.get("num_key_value_heads") or heads)
    layers, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
    writer = gguf.GGUFWriter(target, family)
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rotation.told_of(config)["rope_theta"]))
    size = int(config.get("head_dim") or width // heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], layers)
    entries = []
    weights = Weights(source)
    for name in weights.names:
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        for part in _parts(name, weights.shape(name)[0], heads, key_heads):
            short = names.get_name(part.name, try_suffixes=(".weight", ".bias"))
            if short is None or not _known(short, _BIASES.get(family, ())):
                raise LoadError(f"tensor {name} has no place in a {family} model")
            turned = {"q_proj.weight": heads, "k_proj.weight": key_heads}.get(".".join(part.name.split(".")[-2:]), 0)
            entries.append(_plain(weights, name, part.rows, short, turned if family == "llama" else 0))
    _write(writer, entries, progress)


def _write(writer: Any, entries: Iterable[_Entry], progress: Progress) -> None:
    """Streams one tensor at a time: a large model's f16 form need not fit into memory."""
    listed = list(entries)
    writer.add_file_type(1)  # mostly f16
    for entry in listed:
        kind = np.dtype(np.float32 if len(entry.shape) == 1 else np.float16)
        count = int(np.prod(entry.shape))
        writer.add_tensor_info(entry.name, entry.shape, kind, count * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, entry in enumerate(listed):
        made = entry.make().reshape(entry.shape)
        if made.ndim > 1:
            made = np.clip(made, -65504, 65504)  # the ends of f16
        writer.write_tensor_data(np.ascontiguousarray(made, np.float32 if made.ndim == 1 else np.float16))
        if index % 64 == 63:
            progress(f"wrote {index + 1} of {len(listed)} tensors as f16")
    writer.close()


def _quantised(tensor: Any) -> _Entry:
    import gguf

    def make() -> np.ndarray[Any, Any]:
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise LoadError(f"tensor {tensor.name}: {error}") from error

    return _Entry(tensor.name, tuple(int(size) for size in reversed(tensor.shape)), make)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    rows: slice


def _parts(name: str, rows: int, heads: int, key_heads: int) -> list[_Part]:
    """The matrices in one tensor: Phi-3 keeps several under each other."""
    if name.endswith("qkv_proj.weight"):
        size = rows // (heads + 2 * key_heads)
        ends: tuple[int, ...] = (heads * size, (heads + key_heads) * size, rows)
        outs = tuple(name.replace("qkv_proj", f"{kind}_proj") for kind in "qkv")
    elif name.endswith("gate_up_proj.weight"):
        ends = (rows // 2, rows)
        outs = tuple(name.replace("gate_up_proj", f"{kind}_proj") for kind in ("gate", "up"))
    else:
        return [_Part(name, slice(0, rows))]
    return [_Part(out, slice(begin, end)) for out, begin, end in zip(outs, (0, *ends), ends, strict=False)]


def _plain(weights: Weights, name: str, rows: slice, short: str, heads: int) -> _Entry:
    def make() -> np.ndarray[Any, Any]:
        found = weights.read(name)[rows]
        if heads:
            # llama.cpp rotates neighbours, transformers halves. Source: LlamaModel.permute in convert_hf_to_gguf.py.
            half = found.shape[0] // heads // 2
            found = found.reshape(heads, 2, half, *found.shape[1:]).swapaxes(1, 2).reshape(found.shape)
        return found

    return _Entry(short, (rows.stop - rows.start, *weights.shape(name)[1:]), make)


def _known(name: str, biases: Sequence[str]) -> bool:
    kind = name.rpartition(".")[0].split(".")[-1]
    if name.endswith(".bias"):
        return kind in biases
    return name == _DIVISORS or (name.endswith(".weight") and kind in _KNOWN)


def _text(reader: Any, key: str) -> str:
    return str(reader.fields[key].contents())
