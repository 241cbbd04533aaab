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
    from penstock.client.endpoint import endpoint
    from penstock.client.fleet import Fleet
    from penstock.core.caller import current_trace, deadline, request_traces, use_trace
    from penstock.core.declare import Batch, model

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "penstock.client",
    "Batch": "penstock.core.declare",
    "Client": "penstock.client",
    "Fleet": "penstock.client.fleet",
    "Server": "penstock.api",
    "current_trace": "penstock.core.caller",
    "deadline": "penstock.core.caller",
    "endpoint": "penstock.client.endpoint",
    "model": "penstock.core.declare",
    "request_traces": "penstock.core.caller",
    "serve": "penstock.api",
    "use_trace": "penstock.core.caller",
}

__all__ = [
    "AsyncClient", "Batch", "Client", "Fleet", "Server", "__version__", "current_trace", "deadline", "endpoint",
    "model", "request_traces", "serve", "use_trace",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
