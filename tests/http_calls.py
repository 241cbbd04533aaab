"""Runs one HTTP request through the real protocols, routes and a numpy door, without a socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from numpy_door import NumpyDoor

from penstock.core.errors import NotFound, PenstockError
from penstock.protocols import CallRoute, HttpProtocol, HttpRequest, HttpResponse, InferRoute, Limits
from penstock.runtime.listeners.router import Found, Router


class Calls:
    """A client of some protocols and a door."""

    def __init__(self, protocols: Sequence[HttpProtocol], door: NumpyDoor, limits: Limits | None = None) -> None:
        self.router = Router(protocols)
        self.door = door
        self.limits = limits or Limits()

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[Found, HttpRequest]:
        found = self.router.find(method.encode(), target.encode())
        if not isinstance(found, Found):
            raise NotFound(f"no route {method} {target}; allowed: {found.allowed}")
        wire = {name.lower().encode(): value.encode("latin-1") for name, value in (headers or {}).items()}
        return found, HttpRequest(method, found.path, wire, body, found.query, found.names, 100.0, self.limits)

    async def __call__(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """The answer as the listener would send it."""
        found, http = self.request(method, target, body, headers)
        try:
            if isinstance(found.route, InferRoute):
                exchange = found.route.decode(http, self.door)
                return exchange.encode(await self.door.submit(exchange.request))
            assert isinstance(found.route, CallRoute), "streams have a method of their own"
            return await found.route.handle(http, self.door)
        except PenstockError as error:
            return found.protocol.encode_error(error, http)

    async def stream(self, target: str, body: bytes) -> list[bytes]:
        """The pieces of a streamed answer."""
        found, http = self.request("POST", target, body)
        exchange = found.route.decode(http, self.door)  # type: ignore[union-attr]  # a StreamRoute
        pieces: list[bytes] = []
        try:
            async for response in self.door.stream(exchange.request):
                piece = exchange.encode_item(response)  # type: ignore[union-attr]
                pieces.append(piece)
        except PenstockError as error:
            return [*pieces, exchange.encode_error(error)]  # type: ignore[union-attr]
        return [*pieces, exchange.encode_end()]  # type: ignore[union-attr]


def body_of(response: HttpResponse) -> bytes:
    return response.body if isinstance(response.body, bytes) else b"".join(response.body)


def json_of(response: HttpResponse) -> Any:
    return orjson.loads(body_of(response))


def header_of(response: HttpResponse, name: str) -> str | None:
    return next((value for key, value in response.headers if key.lower() == name.lower()), None)
