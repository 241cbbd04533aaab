"""Which engine runs a model: the one asked for, else the most preferred that fits its files and its device.

An engine whose `fit` was too hopeful says so as it loads (`Unfit`): the next one that fits is taken, unless the owner
named the engine. What was passed over, and why, is logged and told in `EngineInfo.note`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from penstock import plugins
from penstock.core.errors import LoadError, PenstockError
from penstock.language.files import ModelFiles
from penstock.runtime.engines import Engine, EngineContext, EnginePlug, Unfit
from penstock.runtime.language import fit

ENGINES = "penstock.runtime.engines"


def choose(files: ModelFiles, device: str, wanted: str = "") -> EnginePlug:
    """The engine for `files`. Raises: LoadError, which says of each engine why it does not fit."""
    if wanted:
        plug = _plug(wanted)
        if reason := _reason(plug, files, device):
            raise LoadError(f"engine {wanted!r} cannot load {files.path.name}: {reason}")
        return plug
    reasons: dict[str, str] = {}
    for plug in _ranked():
        if not (reason := _reason(plug, files, device)):
            return plug
        reasons[plug.name] = reason
    raise LoadError(f"no engine can load {files.path.name} ({files.kind}): {_told(reasons)}")


def load(files: ModelFiles, context: EngineContext, wanted: str = "", *, check_memory: bool = True) -> Engine:
    """The engine that `choose` chooses, loaded; the next ones where it proves not to be for these files.

    Raises: LoadError, of the engine that failed, or of each that was tried why it cannot load them.
    """
    if wanted:
        return _loaded(choose(files, context.device, wanted), files, context, check_memory)
    passed: list[tuple[EnginePlug, str]] = []
    for plug in _ranked():
        reason = _reason(plug, files, context.device)
        if not reason:
            try:
                return _noted(_loaded(plug, files, context, check_memory), passed, files)
            except Unfit as error:
                reason = error.message
                print(f"{files.path.name}: {plug.name} cannot load it: {reason}", flush=True)
        passed.append((plug, reason))
    raise LoadError(
        f"no engine can load {files.path.name} ({files.kind}): {_told({plug.name: why for plug, why in passed})}"
    )


def _loaded(plug: EnginePlug, files: ModelFiles, context: EngineContext, check_memory: bool) -> Engine:
    return plug.load(files, fit.fitted(files, context, plug.name) if check_memory else context)


def _noted(engine: Engine, passed: Sequence[tuple[EnginePlug, str]], files: ModelFiles) -> Engine:
    """The engine; its note tells why those that were preferred to it and take such files were passed over."""
    reasons = {plug.name: reason for plug, reason in passed if files.kind in plug.kinds}
    if reasons:
        told = f"with {engine.info.engine}, because of {_told(reasons)}"
        print(f"{files.path.name} is loaded {told}", flush=True)
        engine.info = replace(engine.info, note="; ".join(filter(None, (engine.info.note, told))))
    return engine


def _ranked() -> list[EnginePlug]:
    return sorted((_plug(name) for name in plugins.names(ENGINES)), key=lambda plug: -plug.preference)


def _told(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _plug(name: str) -> EnginePlug:
    try:
        return cast(EnginePlug, plugins.load(ENGINES, name))
    except PenstockError as error:
        raise LoadError(str(error)) from error


def _reason(plug: EnginePlug, files: ModelFiles, device: str) -> str:
    kind = device.partition(":")[0]
    if kind not in plug.devices:
        return f"it runs on {', '.join(sorted(plug.devices))}, not on {device}"
    return plug.fit(files)
