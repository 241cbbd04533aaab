"""Files and batches in an extra front: all of them are in the process that holds the models."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from penstock.core.batches import Batch, StoredFile

RESULTS: Final[dict[str, Any]] = {
    "batches.add_file": StoredFile,
    "batches.file": StoredFile,
    "batches.files": list[StoredFile],
    "batches.content": bytes,
    "batches.remove_file": None,
    "batches.create": Batch,
    "batches.batch": Batch,
    "batches.listed": list[Batch],
    "batches.cancel": Batch,
}


class RemoteBatches:
    """`core.batches.Batches` over a link. `call` asks for one of `RESULTS` and gives back what it says."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._call = call

    async def add_file(self, caller: str, name: str, content: bytes, keep_s: float | None = None) -> StoredFile:
        """See `core.batches.Batches`, also of the methods below."""
        return await self._call("batches.add_file", caller, name, content, keep_s)  # type: ignore[no-any-return]  # decoded

    async def file(self, caller: str, id: str) -> StoredFile:
        return await self._call("batches.file", caller, id)  # type: ignore[no-any-return]  # decoded to its type

    async def files(self, caller: str) -> list[StoredFile]:
        return await self._call("batches.files", caller)  # type: ignore[no-any-return]  # decoded to its type

    async def content(self, caller: str, id: str) -> bytes:
        return await self._call("batches.content", caller, id)  # type: ignore[no-any-return]  # decoded to its type

    async def remove_file(self, caller: str, id: str) -> None:
        await self._call("batches.remove_file", caller, id)

    async def create(
        self, caller: str, endpoint: str, input_file: str, metadata: Mapping[str, str], keep_s: float | None = None
    ) -> Batch:
        return await self._call("batches.create", caller, endpoint, input_file, dict(metadata), keep_s)  # type: ignore[no-any-return]  # decoded

    async def batch(self, caller: str, id: str) -> Batch:
        return await self._call("batches.batch", caller, id)  # type: ignore[no-any-return]  # decoded to its type

    async def listed(self, caller: str) -> list[Batch]:
        return await self._call("batches.listed", caller)  # type: ignore[no-any-return]  # decoded to its type

    async def cancel(self, caller: str, id: str) -> Batch:
        return await self._call("batches.cancel", caller, id)  # type: ignore[no-any-return]  # decoded to its type
