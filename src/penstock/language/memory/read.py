"""The Shape of a model out of its files' headers."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.core.errors import InvalidInput
from penstock.language import gguf
from penstock.language.files import ModelFiles
from penstock.language.memory import layers, weights
from penstock.language.memory.layers import needed, number
from penstock.language.memory.shape import Layer, Shape

_NONE: tuple[Layer, ...] = ()


def read(files: ModelFiles) -> Shape:
    """What of these files decides their memory.

    Raises:
        InvalidInput: a header is unreadable, or tells of something whose memory is not known here.
    """
    if files.kind == "gguf":
        return _gguf(files)
    if files.kind not in ("huggingface", "sentence", "openvino"):
        raise InvalidInput(f"{files.path.name} ({files.kind}) holds no weights, so there is no memory to tell of")
    return _folder(files)


def _gguf(files: ModelFiles) -> Shape:
    header = gguf.read_header(files.path)
    own = layers.own_values(header)
    tensors = weights.of_gguf(header)
    tokens = header.values.get("tokenizer.ggml.tokens")
    vocabulary = number(own, "vocab_size") or (len(tokens) if isinstance(tokens, list) else 0)
    heads = own.get("attention.head_count", 1)
    experts = number(own, "expert_used_count") or 0
    feed_forward = own.get("feed_forward_length", 0)
    one = number(own, "expert_feed_forward_length")
    return Shape(
        header.architecture, "gguf", files.task == "generate", tensors,
        layers.of_gguf(header) if files.task == "generate" else _NONE,
        needed(own, "embedding_length"), _most(heads),
        one * experts if one and experts else _most(feed_forward) * max(1, experts), vocabulary,
        number(own, "context_length") or 0, not any(tensor.name == "output.weight" for tensor in tensors),
        file_bytes=files.path.stat().st_size,
    )  # fmt: skip


def _most(value: object) -> int:
    if isinstance(value, list):
        return max((one for one in value if isinstance(one, int)), default=0)
    return value if isinstance(value, int) else 0


def _folder(files: ModelFiles) -> Shape:
    config = _own_config(files.config)
    if not config:
        raise InvalidInput(f"{files.path.name} has no config.json, so the memory of this model cannot be told")
    cache = ""
    if files.kind == "openvino":
        tensors, size, cache = weights.of_openvino(files.path)
    else:
        tensors, size = weights.of_folder(files.path)
    generates = files.task == "generate"
    hidden = needed(config, "hidden_size", "n_embd", "d_model")
    experts = number(config, "num_experts_per_tok", "moe_topk", "num_experts_per_token") or 1
    wide = number(config, "moe_intermediate_size")
    feed_forward = wide * experts if wide else (number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden)
    return Shape(
        files.architecture, "openvino" if files.kind == "openvino" else "sentence" if files.kind == "sentence" else
        "huggingface", generates, tensors, layers.of_config(config) if generates else _NONE, hidden,
        number(config, "num_attention_heads", "n_head", "num_heads", "n_heads") or 1,
        feed_forward if wide or experts == 1 else feed_forward * experts, number(config, "vocab_size") or 0,
        number(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length") or 0,
        bool(config.get("tie_word_embeddings", False)), cache, size,
    )  # fmt: skip


def _own_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The values of the language model, which models of several senses keep apart (`text_config`)."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return config
    return {**config, **{key: value for key, value in inner.items() if value is not None}}
