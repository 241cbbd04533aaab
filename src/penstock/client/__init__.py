"""A small client for any server of the Open Inference Protocol V2: `Client`, and `AsyncClient` for asyncio.

    client = penstock.Client("http://127.0.0.1:8080")
    client.infer("iris", {"x": array})["y"]

Tensors travel in binary both ways. Errors are those of `core.errors`. Needs numpy and orjson, nothing of the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.client.options import Tls
from penstock.client.sync import Client
from penstock.client.tensors import Result

if TYPE_CHECKING:
    from penstock.client.asynchronous import AsyncClient

__all__ = ["AsyncClient", "Client", "Result", "Tls"]


def __getattr__(name: str) -> object:
    if name == "AsyncClient":  # asyncio takes longer to import than all the rest; who is synchronous does without
        from penstock.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module 'penstock.client' has no attribute {name!r}")
