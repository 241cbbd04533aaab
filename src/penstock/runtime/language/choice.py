"""Which engine runs a model: the one asked for, else the most preferred that fits its files and its device."""

from __future__ import annotations

from typing import cast

from penstock import plugins
from penstock.core.errors import LoadError, PenstockError
from penstock.language.files import ModelFiles
from penstock.runtime.engines import EnginePlug

ENGINES = "penstock.runtime.engines"


def choose(files: ModelFiles, device: str, wanted: str = "") -> EnginePlug:
    """The engine for `files`. Raises: LoadError, which says of each engine why it does not fit."""
    if wanted:
        plug = _plug(wanted)
        if reason := _reason(plug, files, device):
            raise LoadError(f"engine {wanted!r} cannot load {files.path.name}: {reason}")
        return plug
    plugs = sorted((_plug(name) for name in plugins.names(ENGINES)), key=lambda plug: -plug.preference)
    reasons = [(plug, _reason(plug, files, device)) for plug in plugs]
    for plug, reason in reasons:
        if not reason:
            return plug
    told = "; ".join(f"{plug.name}: {reason}" for plug, reason in reasons)
    raise LoadError(f"no engine can load {files.path.name} ({files.kind}): {told}")


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
