"""Bytes of the KV cache: keys and values of every layer, quantised or not, windows, latents, recurrent states."""

from __future__ import annotations

import math
from collections.abc import Mapping

from penstock.language.memory.shape import Layer, Shape

# Bytes of n numbers of one head. q8_0 and its like are blocks of 32 with an f16 scale (ggml-common.h). OpenVINO's u8
# keeps a scale and a zero point (f32 each) besides: one pair per token of values, and one per channel and block of 32
# tokens of keys (measured: 13,680 bytes a token of SmolLM2, whose heads are 64 wide).
_PLAIN: Mapping[str, float] = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "f8": 1.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
_BLOCK = 32
_PAIR_BYTES = 8
CACHE_KINDS = (*_PLAIN, "u8", "u4")


def head_bytes(kind: str, size: int, keys: bool) -> float:
    """Bytes of one token in one head of `size` numbers."""
    if kind in ("u8", "u4"):
        numbers = size * (1.0 if kind == "u8" else 0.5)
        return numbers + (size * _PAIR_BYTES / _BLOCK if keys else _PAIR_BYTES)
    return size * _PLAIN[kind]


def layer_bytes(layer: Layer, kind: str, *, latent: bool) -> float:
    """Bytes of one token in one layer; `latent` where the engine keeps latents instead of keys and values."""
    if latent and layer.latent_size:
        return head_bytes(kind, layer.latent_size, True)
    one = head_bytes(kind, layer.key_size, True) + head_bytes(kind, layer.value_size, False)
    return layer.kv_heads * one if layer.kv_heads else 0.0


def cache_bytes(
    shape: Shape, kind: str, tokens: int, *, block: int = 1, latent: bool = False, windows: bool = False, ahead: int = 0
) -> int:
    """Bytes that one sequence of `tokens` takes.

    Args:
        kind: one of CACHE_KINDS.
        block: tokens are given out in blocks of so many.
        latent: the engine keeps latents of multi-head latent attention.
        windows: the engine gives back what has left a sliding window.
        ahead: tokens beyond the window that it keeps until a step is done.
    """
    total = 0.0
    for layer in shape.layers:
        kept = tokens
        if windows and layer.window is not None:
            kept = min(tokens, layer.window + ahead)
        total += math.ceil(kept / block) * block * layer_bytes(layer, kind, latent=latent) + layer.state_bytes
    return math.ceil(total)


def token_bytes(shape: Shape, kind: str, *, latent: bool = False) -> int:
    """Bytes of one more token while no window is full."""
    return math.ceil(sum(layer_bytes(layer, kind, latent=latent) for layer in shape.layers))
