"""Whether a language model fits into this machine's memory, and the context, concurrency and cache that do, before its
engine loads: a model that is too large is refused with numbers instead of being killed by the kernel."""

from __future__ import annotations

from dataclasses import replace

from penstock.core.errors import InvalidInput, LoadError
from penstock.language import memory
from penstock.language.files import ModelFiles
from penstock.runtime.engines import EngineContext
from penstock.runtime.workers.free_memory import free_bytes

_CACHE_OPTIONS = ("kv_type", "kv_cache", "kv_cache_dtype", "kv_cache_precision")  # as engines call them


def plan(files: ModelFiles, context: EngineContext, engine: str, free: int | None = None) -> memory.Plan | None:
    """What would be loaded, and what it takes; None when that cannot be told: of an engine or architecture that is not
    known, of a device that is no processor, or where the system does not say what is free.

    Raises:
        LoadError: the files, or what `context` says of a dtype or a cache, are unreadable or impossible.
    """
    found = _found(files, context, engine, free)
    return None if found is None else found[2]


def fitted(files: ModelFiles, context: EngineContext, engine: str, free: int | None = None) -> EngineContext:
    """The context with what was left open chosen so that it fits.

    Raises:
        LoadError: it cannot fit, with the numbers and what to change.
    """
    found = _found(files, context, engine, free)
    if found is None:
        return context
    shape, terms, planned, wish = found
    if problem := memory.refusal(context.name or files.path.name, shape, terms, planned, wish):
        raise LoadError(f"{problem}; option memory_check = false loads it all the same")
    if not shape.generates:
        return context
    # Engines count every layer whole: what windows save must not make their count of tokens smaller.
    kept, whole = memory.sequence_bytes(shape, terms, planned)
    return replace(
        context, context_tokens=planned.context_tokens, max_running=planned.max_running,
        kv_cache_bytes=planned.kv_cache_bytes * whole // max(1, kept),
    )  # fmt: skip


def check_fits(files: ModelFiles, context: EngineContext, engine: str, free: int | None = None) -> None:
    """Raises LoadError when the model cannot fit, with the numbers and what to change."""
    fitted(files, context, engine, free)


def _found(
    files: ModelFiles, context: EngineContext, engine: str, free: int | None
) -> tuple[memory.Shape, memory.EngineTerms, memory.Plan, memory.Wish] | None:
    terms = memory.ENGINES.get(engine)
    if terms is None or context.device != "cpu" or files.kind in ("upstream", "echo"):
        return None
    free = free_bytes() if free is None else free
    if free is None:
        return None
    try:
        shape = memory.read(files)
    except InvalidInput as error:
        print(f"the memory of {files.path.name} is not checked: {error.message}")
        return None
    kind = next((str(context.options[name]) for name in _CACHE_OPTIONS if name in context.options), "")
    kind = kind if kind in terms.cache_kinds else ""  # the engine itself refuses what it does not know
    dtype = context.dtype if context.dtype in memory.DTYPES else ""
    planned = memory.plan(
        shape, terms, free, context_tokens=context.context_tokens, max_running=context.max_running,
        kv_cache_bytes=context.kv_cache_bytes, dtype=dtype, cache_kind=kind,
    )  # fmt: skip
    return shape, terms, planned, memory.Wish(planned.context_tokens, planned.max_running, dtype, kind)
