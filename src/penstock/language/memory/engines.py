"""What each engine adds to a model's own bytes, as measured: `docs/memory.md` tells how, and how near it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.language.memory.shape import Shape

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """One engine's habits with memory. Measured as resident (RSS) in a worker process of Penstock, on x86-64."""

    name: str
    process_bytes: int  # Python, Penstock and the engine's library, before any model
    vocabulary_bytes: int  # of each token's text, in the engine's tables
    runtime_factors: Mapping[str, float]  # kind of weights → bytes of the engine's own form, for each byte
    default_factor: float  # of kinds not listed
    mapped: bool  # weights lie in the file, mapped: the kernel can take their pages back
    block_tokens: int  # the cache is given out in blocks of so many tokens
    touched_at_load: bool  # the whole cache is resident from the start; else pages become so as tokens fill them
    shared: bool  # sequences share one cache; else each has room for a whole context
    windows: bool  # what has left a sliding window is given back
    latent: bool  # latents of multi-head latent attention are kept instead of keys and values
    chunk_tokens: int  # computed in one step at most
    default_running: int
    modest_cache_bytes: int | None = None  # the largest cache that it takes unasked, beyond one whole context
    default_dtype: str = ""  # of files that it converts; "" is as they are
    cache_kinds: tuple[str, ...] = ("f16",)  # the first is the default

    def cache_kind(self, shape: Shape, dtype: str) -> str:
        """The kind of KV cache that it uses when nobody says."""
        if self.name == "openvino":
            if shape.cache_kind in self.cache_kinds:
                return shape.cache_kind
            # 8 bits is the CPU plugin's own choice; a graph that was made from f16 asks for f16.
            return "u8" if shape.form == "openvino" else "f16"
        if self.name in ("vllm", "transformers"):
            held = dtype or shape.precision
            return "f32" if held == "f32" else "f16"
        return self.cache_kinds[0]


# llamacpp: 4 contexts, 1 to 16 sequences, f16 and q8_0 caches of SmolLM2 135M Q4_1 (vocabulary of 49,152).
# openvino: the same model as f16, int8 and int4; the file stays mapped (f16: is read), the plugin keeps its own form.
# transformers and vllm: rough, from single runs of one small model on a CPU; not calibrated.
ENGINES: Mapping[str, EngineTerms] = {
    terms.name: terms
    for terms in (
        EngineTerms(
            "llamacpp", 95 * _MIB, 320, {}, 0.0, True, 256, True, True, True, True, 512, 16, 512 * _MIB,
            cache_kinds=("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"),
        ),
        EngineTerms(
            "openvino", 195 * _MIB, 0, {"f16": 2.0, "bf16": 2.0}, 1.0, True, 32,
            False, True, False, False, 512, 16, None, "int8", ("u8", "u4", "f16", "bf16", "f32"),
        ),
        EngineTerms(
            "transformers", 450 * _MIB, 0, {}, 0.0, False, 32, False, True, False, False, 512, 8,
            cache_kinds=("f16", "bf16", "f32"),
        ),
        EngineTerms(
            "vllm", 1300 * _MIB, 0, {}, 0.0, False, 16, True, True, True, True, 2048, 16,
            cache_kinds=("f16", "bf16", "f32", "f8"),
        ),
    )
}  # fmt: skip
