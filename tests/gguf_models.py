"""GGUF files that packages do not carry, made of what they do: an embedding model, and LoRA adapters.

Source: llama.cpp's convert_hf_to_gguf.py (BertModel) and convert_lora_to_gguf.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_bert(folder: Path, target: Path) -> None:
    """A BERT with mean pooling out of a sentence-transformers folder, in float32."""
    import gguf
    from safetensors.numpy import load_file

    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    words = (folder / "vocab.txt").read_text("utf-8").splitlines()
    writer = gguf.GGUFWriter(str(target), "bert")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(config["type_vocab_size"])
    special = [word.startswith("[") and word.endswith("]") for word in words]
    writer.add_token_list([_word(word, alone) for word, alone in zip(words, special, strict=True)])
    kinds = [gguf.TokenType.CONTROL if alone else gguf.TokenType.NORMAL for alone in special]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_eos_token_id(words.index("[SEP]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_mask_token_id(words.index("[MASK]"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("bert.")
        if name.startswith(("pooler.", "cls.")) or name.endswith("position_ids"):
            continue
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert called is not None, name
        writer.add_tensor(called, values.astype(np.float32))
    _close(writer)


def _word(word: str, special: bool) -> str:
    """As llama.cpp keeps WordPiece: what begins a word has a mark, instead of what goes on with one."""
    if special:
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def write_lora(base: Path, target: Path, seed: int, *, rank: int = 4, size: float = 1.0) -> None:
    """A LoRA adapter of random matrices for the queries and outputs of all layers of a Llama in GGUF."""
    import gguf

    header = gguf.GGUFReader(str(base))
    chance = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for tensor in header.tensors:
        if tensor.name.endswith(("attn_q.weight", "attn_output.weight")):
            inner, outer = (int(length) for length in tensor.shape)
            a, b = chance.normal(size=(rank, inner)), chance.normal(size=(outer, rank)) * size
            writer.add_tensor(f"{tensor.name}.lora_a", (a / inner**0.5).astype(np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", b.astype(np.float32))
    _close(writer)


def write_llama(base: Path, target: Path, heads: int = 2, size: int = 64, divisors: float = 0.0, **header: Any) -> None:
    """A Llama of one layer and random weights, with the tokenizer of the GGUF file `base`; heads of `size` numbers.

    `divisors`: what the slowest frequency of its rotary embedding is divided by, as Llama 3.1 keeps it; 0: by nothing.
    `header`: more of its keys, below "llama.", "__" for each dot.
    """
    import gguf

    reader = gguf.GGUFReader(str(base))
    width, inner = heads * size, 2 * heads * size
    writer = gguf.GGUFWriter(str(target), "llama")
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            inside = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inside)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in header.items():
        name = f"llama.{key.replace('__', '.')}"
        writer.add_string(name, value) if isinstance(value, str) else writer.add_float32(name, value)
    chance = np.random.default_rng(1)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    shapes = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width),
              "attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width),
              "ffn_down": (width, inner)}  # fmt: skip
    writer.add_tensor("token_embd.weight", chance.normal(scale=0.1, size=(vocabulary, width)).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    if divisors:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, divisors, size // 2, dtype=np.float32))
    for name, shape in shapes.items():
        values = chance.normal(size=shape) / shape[1] ** 0.5
        writer.add_tensor(f"blk.0.{name}.weight", values.astype(np.float32))
    _close(writer)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
