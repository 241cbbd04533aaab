"""The route table as routers poll for it, and which routers have which version of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from penstock.fleet.routes import Endpoint, Table, Tenant

# Routers poll and report each second; one that was not heard of for so long is not waited for.
_LIVE_S = 3.0
# A replica that leaves waits at most so long for routers to learn of it.
LEARN_S = 5.0
_KEPT_S = 60.0
_MOST = 1024


class Tables:
    """On the controller's loop only."""

    def __init__(self, secret: str) -> None:
        self.version = 0
        self._secret = secret
        self._content: tuple[tuple[Endpoint, ...], tuple[Tenant, ...]] | None = None
        self._body = b""
        self._changed = asyncio.Condition()
        self._routers: dict[str, tuple[int, float]] = {}  # id -> version, monotonic time of the last word
        self._began = time.monotonic()

    def differs(self, endpoints: tuple[Endpoint, ...], tenants: tuple[Tenant, ...]) -> bool:
        """Whether this would be another table than the one published."""
        return (endpoints, tenants) != self._content

    async def publish(self, version: int, endpoints: tuple[Endpoint, ...], tenants: tuple[Tenant, ...]) -> None:
        """Hands a new table to whoever polls."""
        self._content = (endpoints, tenants)
        self._body = msgspec.json.encode(Table(version, endpoints, tenants, self._secret))
        self.version = version
        async with self._changed:
            self._changed.notify_all()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those of the published table."""
        return self._content[0] if self._content else ()

    async def after(self, version: int, timeout_s: float) -> bytes | None:
        """The table once it is another than that version; None when it stays the same for `timeout_s`.

        A router that has a later version than ours is sent ours: its database was put back to an earlier state."""
        await self._until(lambda: bool(self._body) and self.version != version, timeout_s)
        return self._body if self._body and self.version != version else None

    def heard(self, router: str, version: int | None) -> None:
        """A router's word, which may tell the version that it has."""
        now = time.monotonic()
        before = self._routers.get(router)
        if before is None and len(self._routers) >= _MOST:
            for id in [id for id, (_, at) in self._routers.items() if now - at > _KEPT_S] or [
                next(iter(self._routers))
            ]:
                del self._routers[id]
        self._routers[router] = (version if version is not None else before[0] if before else 0, now)

    async def told(self) -> None:
        """Lets those look again who wait for routers."""
        async with self._changed:
            self._changed.notify_all()

    def live(self) -> list[str]:
        """The routers heard of lately."""
        now = time.monotonic()
        return sorted(id for id, (_, at) in self._routers.items() if now - at <= _LIVE_S)

    async def learned(self, version: int) -> None:
        """Returns when all live routers have that version or a later one, or after `LEARN_S`.

        A controller that has just started does not know yet who there is, and waits for them."""
        young_s = max(0.0, self._began + _LIVE_S - time.monotonic())
        if young_s and not self.live():
            await self._until(lambda: bool(self.live()), young_s)
        await self._until(lambda: self._all_have(version), LEARN_S)

    def _all_have(self, version: int) -> bool:
        now = time.monotonic()
        return all(has >= version for has, at in self._routers.values() if now - at <= _LIVE_S)

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(holds)
        except TimeoutError:
            pass
