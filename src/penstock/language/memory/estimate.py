"""Bytes that a model takes with an engine: weights, their second form, cache, activations, the engine itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.language.memory.cache import cache_bytes, token_bytes
from penstock.language.memory.engines import EngineTerms
from penstock.language.memory.shape import Shape, Tensor

# Bits of one weight of a matrix. int8 and int4: with scales and zero points of nncf (int4: groups of 64); GGUF kinds
# from ggml-common.h, the K mixtures as llama.cpp reports them for a 7 B Llama.
BITS = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "f8": 8.0, "int8": 8.05, "int4": 4.3, "q8_0": 8.5, "q6_k": 6.5625,
    "q5_k_m": 5.69, "q5_1": 6.0, "q5_0": 5.5, "q4_k_m": 4.85, "q4_1": 5.0, "q4_0": 4.5,
}  # fmt: skip
_F32, _SMALL_SIZE = 4, {"int8": 2, "int4": 2, "f16": 2, "bf16": 2}  # of norms and biases


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a model. `cache_bytes` None: as much as `concurrency` sequences of `context_tokens` need."""

    context_tokens: int
    concurrency: int = 1
    dtype: str = ""  # "": as the engine takes these files
    cache_kind: str = ""
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Resident bytes of the engine's process. The total is when the cache is full."""

    weights: int  # as they lie in the file or are made
    weights_again: int  # in the engine's own form, besides
    cache: int  # reserved
    cache_at_load: int  # of it, resident before the first request
    activations: int
    engine: int
    token: int  # bytes of cache per token
    cache_kind: str
    mapped: int  # of the weights: pages of a file, which the kernel can take back when memory is short

    @property
    def at_load(self) -> int:
        """Before the first request."""
        return self.weights + self.weights_again + self.cache_at_load + self.engine

    @property
    def total(self) -> int:
        return self.weights + self.weights_again + self.cache + self.activations + self.engine


def weights_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of the weights in `dtype`; as they are in the file for "". Raises: InvalidInput for an unknown dtype."""
    if not dtype or dtype == shape.precision:
        return sum(tensor.size_bytes for tensor in shape.tensors)
    if dtype not in BITS:
        raise InvalidInput(f"dtype {dtype!r} is not known{nearest(dtype, BITS)}; there are {', '.join(BITS)}")
    return math.ceil(sum(_made(tensor, dtype) for tensor in shape.tensors))


def _made(tensor: Tensor, dtype: str) -> float:
    if not tensor.matrix:
        return tensor.elements * _SMALL_SIZE.get(dtype, _F32)
    # Tables over the vocabulary keep 8 bits (nncf) or as many (llama.cpp: q8_0 or q6_K) where the others get fewer.
    kept = {"int4": "int8", "q4_k_m": "q6_k", "q5_k_m": "q6_k"}.get(dtype, dtype) if tensor.embedding else dtype
    return tensor.elements * BITS[kept] / 8


def estimate(shape: Shape, terms: EngineTerms, wish: Wish) -> Estimate:
    """What `wish` takes. Raises: InvalidInput for a dtype or a cache that the engine does not have."""
    converted = shape.form in ("gguf", "huggingface") and terms.default_dtype
    dtype = wish.dtype or (terms.default_dtype if converted else "")
    kind = wish.cache_kind or terms.cache_kind(shape, dtype)
    if kind not in terms.cache_kinds:
        raise InvalidInput(
            f"{terms.name} has no KV cache of {kind!r}{nearest(kind, terms.cache_kinds)}; it has "
            f"{', '.join(terms.cache_kinds)}"
        )
    weights = weights_bytes(shape, dtype)
    held = dtype or shape.precision
    again = math.ceil(weights * terms.runtime_factors.get(held, terms.default_factor))
    cache = wish.cache_bytes
    if cache is None:
        cache = wish.concurrency * one_sequence(shape, terms, wish.context_tokens, kind)
    chunk = terms.chunk_tokens
    activations = chunk * (4 * shape.hidden + 3 * shape.feed_forward) * _F32
    if shape.generates:
        activations += wish.concurrency * shape.vocabulary * _F32
    return Estimate(
        weights, again, cache, cache if terms.touched_at_load else 0, activations,
        terms.process_bytes + terms.vocabulary_bytes * shape.vocabulary,
        token_bytes(shape, kind, latent=terms.latent), kind,
        weights if terms.mapped and not (held == "f16" and again) else 0,
    )  # fmt: skip


def one_sequence(shape: Shape, terms: EngineTerms, context_tokens: int, kind: str) -> int:
    """Bytes of cache of one sequence that fills its context."""
    return cache_bytes(
        shape, kind, context_tokens, block=terms.block_tokens, latent=terms.latent, windows=terms.windows,
        ahead=terms.chunk_tokens,
    )  # fmt: skip
