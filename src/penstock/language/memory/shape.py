"""What of a model decides how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the weights as it lies in the file. `kind` in lower case: "f32", "bf16", "q4_1", "u8", …"""

    name: str
    kind: str
    elements: int
    size_bytes: int
    matrix: bool  # two axes or more: what is compressed

    @property
    def embedding(self) -> bool:
        """Whether it is one of the two tables over the vocabulary, which stay at 8 bits when the others get 4."""
        return any(word in self.name for word in ("embed", "token_embd", "wte", "lm_head", "output.weight"))


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps: of each token (keys and values, or a latent), or of each sequence (a recurrent state)."""

    kv_heads: int
    key_size: int  # numbers per head
    value_size: int
    window: int | None = None  # tokens it looks back; None is all
    latent_size: int = 0  # multi-head latent attention: numbers of one token, where an engine keeps those
    state_bytes: int = 0  # of one sequence


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as arithmetic sees it. Sizes in numbers, not bytes."""

    architecture: str
    form: Literal["gguf", "huggingface", "sentence", "openvino"]
    generates: bool
    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    hidden: int
    heads: int
    feed_forward: int  # of one token: all experts that it goes through
    vocabulary: int
    context_tokens: int
    tied: bool  # one table is both the embedding and the output
    cache_kind: str = ""  # what the file itself asks for
    file_bytes: int = 0  # of the weights' files, headers too

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def precision(self) -> str:
        """The kind that holds most of the weights."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.elements
        return max(sizes, key=lambda kind: sizes[kind]) if sizes else ""
