"""Language models: holds one engine (`penstock.runtime.engines`) in a worker, and speaks tokens with it.

Options: `engine` (unset: the most preferred that fits), `context_tokens`, `max_running`, `kv_cache_bytes`, `dtype`,
`prefix_cache`, `cache` (folder of converted models), `memory_check` (false loads what does not seem to fit),
`lora.NAME = PATH`, `python` (the worker's interpreter, for an engine with an environment of its own); every other one
is the engine's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping
from contextlib import aclosing
from pathlib import Path

import numpy as np

from penstock.core.errors import InvalidInput, LoadError, Unsupported
from penstock.core.language import Delta, Generation
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Outlet, Servable, Tensors
from penstock.language import files
from penstock.runtime.engines import Engine, EngineContext, Pouring
from penstock.runtime.language import choice, wire
from penstock.runtime.language.fallback import FALLBACK
from penstock.runtime.language.joining import Joiner

_LORA = "lora."
# What the server reads for itself: a template instead of the model's own, what may wait, who shares requests.
_OF_THE_SERVER = ("chat_template", "max_queued_tokens", "consumer_group", "python", FALLBACK)
_TRIAL = Generation("warm-up", (1, 2, 3), 1)


class LanguageServable:
    """The servable: one engine, many streams."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.signature = wire.signature(engine.info)

    async def pour(self, inputs: Tensors, parameters: Mapping[str, Parameter], outlet: Outlet) -> None:
        """One piece for each Delta. Cancelling it frees the sequence."""
        engine = self._engine
        if wire.GENERATION not in parameters and not engine.info.generates:  # the warm-up
            await self._predict(inputs, "")
            outlet.put(wire.piece(Delta(finish_reason="stop")), 0)
            return
        if not engine.info.generates:
            raise Unsupported("this model does not generate text")
        generation = wire.asked(inputs, parameters) if wire.GENERATION in parameters else _TRIAL
        joiner = Joiner(outlet, generation.gather_s)
        try:
            await self._join(generation, joiner)
        except Exception:  # its reader is still there, unlike one whose stream is cancelled or late
            joiner.flush()
            raise
        await joiner.sent()

    async def _join(self, generation: Generation, joiner: Joiner) -> None:
        engine = self._engine
        if isinstance(engine, Pouring):
            await engine.pour(generation, joiner.put)
            return
        async with aclosing(engine.generate(generation)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                joiner.put(delta)
                if delta.event:  # they cannot be joined, so this engine waits for its reader
                    await joiner.sent()

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Awaitable[Tensors]:
        """Embeddings or scores; without an operation, a trial of the real path: one token, or one vector."""
        return self._predict(inputs, str(parameters.get(wire.OPERATION, "")))

    async def _predict(self, inputs: Tensors, operation: str) -> Tensors:
        engine = self._engine
        if operation == "embed" or (not operation and engine.info.embeds):
            texts = wire.listed(inputs) if operation else [[1, 2, 3]]
            return {"values": np.array(await engine.embed(texts), np.float32)}
        if operation == "score" or (not operation and not engine.info.generates):
            texts = wire.listed(inputs) if operation else [[1, 2], [3]]
            pairs = list(zip(texts[::2], texts[1::2], strict=True))
            return {"values": np.array(await engine.score(pairs), np.float32)}
        found: list[int] = []
        async for delta in engine.generate(_TRIAL):
            found += delta.token_ids
        return {"token_ids": np.array(found, np.int32)}

    def close(self) -> None:
        """Ends the engine; the worker's own loop has ended by now."""
        asyncio.run(self._engine.close())


class LanguageAdapter:
    """Engines in worker processes only: a native abort ends a worker, not the server."""

    name = "language"
    inline_safe = False
    preload: tuple[str, ...] = ()

    def recognises(self, path: Path) -> bool:
        return files.recognises(path)

    def load(self, path: Path, context: LoadContext) -> Servable:
        try:
            found = files.look(path)
        except InvalidInput as error:
            raise LoadError(error.message) from error
        options = context.options
        engine = choice.load(
            found, engine_context(context), str(options.get("engine", "")),
            check_memory=bool(options.get("memory_check", True)),
        )  # fmt: skip
        return LanguageServable(engine)


def engine_context(context: LoadContext) -> EngineContext:
    """What the engine is told. Raises: LoadError for an option of ours that cannot be read."""
    own = {
        "engine", "context_tokens", "max_running", "kv_cache_bytes", "dtype", "prefix_cache", "cache", "memory_check",
        *_OF_THE_SERVER,
    }  # fmt: skip
    options = context.options
    numbers: dict[str, int | None] = {}
    for name in ("context_tokens", "max_running", "kv_cache_bytes"):
        value = options.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise LoadError(f"option {name} = {value!r}: write a whole number above 0")
        numbers[name] = value
    adapters = {key.removeprefix(_LORA): Path(str(value)) for key, value in options.items() if key.startswith(_LORA)}
    for name, folder in adapters.items():
        if not folder.exists():
            raise LoadError(f"option {_LORA}{name} = {str(folder)!r}: no such file or folder")
    return EngineContext(
        context.name, context.device, context.device_fraction, context.threads, numbers["context_tokens"],
        numbers["max_running"], numbers["kv_cache_bytes"], str(options.get("dtype", "")),
        bool(options.get("prefix_cache", True)), adapters, cache_folder(options), context.trusted,
        {key: value for key, value in options.items() if key not in own and not key.startswith(_LORA)},
    )  # fmt: skip


def cache_folder(options: Mapping[str, Parameter]) -> Path:
    """Where converted models are kept. Source: the XDG Base Directory Specification."""
    if "cache" in options:
        return Path(str(options["cache"])).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "models"


plug = LanguageAdapter()
