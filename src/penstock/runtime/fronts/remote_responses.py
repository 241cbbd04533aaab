"""Kept answers in an extra front: all of them are in the process that holds the models."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from penstock.core.responses import EventsPart, StoredResponse, Wish

RESULTS: Final[dict[str, Any]] = {
    "responses.keep": bool,
    "responses.find": StoredResponse,
    "responses.items": bytes,
    "responses.remove": None,
    "responses.begin": None,
    "responses.cancel": StoredResponse,
    "responses.events": EventsPart,
}


class RemoteResponses:
    """`core.responses.Responses` over a link. `call` asks for one of `RESULTS` and gives back what it says."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._call = call

    async def keep(self, caller: str, id: str, status: str, document: bytes, items: bytes) -> bool:
        """See `core.responses.Responses`, also of the methods below."""
        return await self._call("responses.keep", caller, id, status, document, items)  # type: ignore[no-any-return]  # decoded

    async def find(self, caller: str, id: str) -> StoredResponse:
        return await self._call("responses.find", caller, id)  # type: ignore[no-any-return]  # decoded to its type

    async def items(self, caller: str, id: str) -> bytes:
        return await self._call("responses.items", caller, id)  # type: ignore[no-any-return]  # decoded to its type

    async def remove(self, caller: str, id: str) -> None:
        await self._call("responses.remove", caller, id)

    async def begin(self, caller: str, wish: Wish) -> None:
        await self._call("responses.begin", caller, wish)

    async def cancel(self, caller: str, id: str) -> StoredResponse:
        return await self._call("responses.cancel", caller, id)  # type: ignore[no-any-return]  # decoded to its type

    async def events(self, caller: str, id: str, after: int) -> EventsPart:
        return await self._call("responses.events", caller, id, after)  # type: ignore[no-any-return]  # decoded to its type
