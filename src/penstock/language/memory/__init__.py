"""How much memory a language model takes, before it is loaded: from headers and arithmetic, without a framework.

`read(files)` gives the Shape of a model (`shape`): its tensors, and what its layers keep of each token. `estimate` adds
what an engine needs (`engines`), and `plan` chooses a context, a concurrency and a cache that fit (`plan`).
"""

from __future__ import annotations

from penstock.language.memory.cache import CACHE_KINDS, cache_bytes
from penstock.language.memory.engines import ENGINES, EngineTerms
from penstock.language.memory.estimate import BITS, Estimate, Wish, estimate
from penstock.language.memory.plan import (
    USABLE,
    Plan,
    largest_concurrency,
    largest_context,
    plan,
    refusal,
    sequence_bytes,
    size,
)
from penstock.language.memory.read import read
from penstock.language.memory.shape import Layer, Shape, Tensor

DTYPES = tuple(BITS)

__all__ = [
    "CACHE_KINDS",
    "DTYPES",
    "ENGINES",
    "USABLE",
    "EngineTerms",
    "Estimate",
    "Layer",
    "Plan",
    "Shape",
    "Tensor",
    "Wish",
    "cache_bytes",
    "estimate",
    "largest_concurrency",
    "largest_context",
    "plan",
    "read",
    "refusal",
    "sequence_bytes",
    "size",
]  # fmt: skip
