"""Which part of a tenant's rate each router may let in, so that all together keep the tenant's limit. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

# What a router let in counts for so long, falling off: a client that moves to another router has its rate there soon.
_MEMORY_S = 3.0
# Divided evenly, so that a router to which a tenant comes for the first time lets some of its requests in.
_EVEN = 0.2


class Shares:
    """Counts what routers report."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], tuple[float, float]] = {}  # tenant, router -> requests that fall off, as of

    def of(
        self, router: str, used: Mapping[str, int], limited: Collection[str], routers: Collection[str], now: float
    ) -> dict[str, float]:  # fmt: skip
        """This router's shares of the `limited` tenants' rates, after it used so much; of all `routers` they sum to 1.

        With one router there is nothing to share, and nobody is named."""
        for key in [key for key in self._used if key[0] not in limited or key[1] not in routers]:
            del self._used[key]
        for tenant in limited:
            if count := used.get(tenant, 0):
                self._used[tenant, router] = (self._left(tenant, router, now) + count, now)
        if len(routers) < 2 or router not in routers:
            return {}
        shares = {}
        for tenant in limited:
            left = {other: self._left(tenant, other, now) for other in routers}
            total = sum(left.values())
            own = left[router] / total if total > 0 else 1 / len(routers)
            shares[tenant] = _EVEN / len(routers) + (1 - _EVEN) * own
        return shares

    def _left(self, tenant: str, router: str, now: float) -> float:
        value, at = self._used.get((tenant, router), (0.0, now))
        return value * math.exp(-max(0.0, now - at) / _MEMORY_S)
