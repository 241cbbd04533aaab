"""Engines: what runs a language model. The file's name is the engine's name in configuration (`engine = "llamacpp"`).

Each module has `plug`, an EnginePlug, and imports its library only inside `load`. An engine lives in a worker process,
on that process's asyncio loop; tokens in, tokens out. Templates, tokenising, stop strings, parsing and grammars are not
its business: `penstock.language` has them. No engine imports another; what several share lies beside this folder.

What an implementer owes:

1. `fit` looks at names, headers and what is installed, imports nothing heavy, and says in one sentence what is missing.
2. `load` blocks until the engine can answer, raises `LoadError` with what to install or do, and reports progress of
   long work (conversion) with `print`, which the server logs. Where `fit` was too hopeful, it raises `Unfit`.
3. `info` tells the truth: what it does not list is refused before it reaches the engine. `generate` honours everything
   that `info` lists, exactly.
4. `generate` gives each token once, in order; the last Delta has `finish_reason`. Tokens that came together may come in
   one Delta. `aclose` of the iterator frees the sequence's slot and cache within one step. Many run at once.
5. An error of one request raises an error of `core.errors` from its iterator and leaves the others alone. An engine
   that cannot go on ends the process (`os._exit`); it is replaced.
6. Nothing blocks the loop longer than one step of the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from penstock.core.errors import LoadError
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation
from penstock.core.messages import Parameter
from penstock.language.files import FileKind, ModelFiles


class Unfit(LoadError):
    """This engine cannot load these files; another one may. The message is the reason."""


@dataclass(frozen=True, slots=True)
class EngineContext:
    """What an engine is told when it loads. `options` are the engine's own, checked by it."""

    name: str
    device: str = "cpu"  # "cpu" or "cuda:N"
    device_fraction: float = 1.0
    threads: int = 1
    context_tokens: int | None = None  # at most; None: the model's own, or what memory allows
    max_running: int | None = None
    kv_cache_bytes: int | None = None
    dtype: str = ""  # "", "f32", "bf16", "f16", "int8", "int4"
    prefix_cache: bool = True
    adapters: Mapping[str, Path] = field(default_factory=dict)  # LoRA adapters by name
    cache: Path = Path()  # where converted models are kept
    trusted: bool = False  # code in a Hugging Face folder may run
    options: Mapping[str, Parameter] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded engine."""

    info: EngineInfo

    def generate(self, generation: Generation) -> AsyncIterator[Delta]: ...

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector of length 1 for each list of token ids. Only with `info.embeds`."""
        ...

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """With `info.ranks`: one number for each pair. With `info.classifies` the second part is empty, and there is a
        probability for each of `info.labels`."""
        ...

    def load(self) -> EngineLoad: ...

    async def close(self) -> None:
        """Ends what runs and frees what it holds."""
        ...


@runtime_checkable
class Pouring(Protocol):
    """An engine that can hand out each Delta by a call, which costs it less than an iterator does."""

    async def pour(self, generation: Generation, put: Callable[[Delta], None]) -> None:
        """As `generate`, with every Delta given to `put`; returns after the last one. Cancelling it is `aclose`."""
        ...


class EnginePlug(Protocol):
    """One engine library."""

    name: str
    preference: int  # among engines that fit, the highest is chosen for a CPU; see `runtime.language.choice`
    devices: frozenset[str]  # kinds it runs on: "cpu", "cuda"
    kinds: frozenset[FileKind]  # of files among which `fit` finds some that it takes

    def fit(self, files: ModelFiles) -> str:
        """ "" when it can load these files here and now; else why not, and what would help."""
        ...

    def load(self, files: ModelFiles, context: EngineContext) -> Engine: ...
