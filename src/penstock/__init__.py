"""Penstock serves machine-learning models: `penstock serve model.onnx`, or `penstock.serve(Model)` from Python.

The names below are imported when they are first used, so that `import penstock` stays cheap for a program that only
declares a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.api import Server, serve
    from penstock.client import AsyncClient, Client
    from penstock.core.declare import Batch, model

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "penstock.client",
    "Batch": "penstock.core.declare",
    "Client": "penstock.client",
    "Server": "penstock.api",
    "model": "penstock.core.declare",
    "serve": "penstock.api",
}

__all__ = ["AsyncClient", "Batch", "Client", "Server", "__version__", "model", "serve"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
