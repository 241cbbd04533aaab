"""Calls about tenants: who may call the endpoints, and how much."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
from aiohttp import web

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.fleet.controller.http_calls import answered, document_of
from penstock.fleet.controller.loop import Controller
from penstock.fleet.routes import Tenant
from penstock.fleet.spec import in_words
from penstock.fleet.store import tenants

_NAME = re.compile(r"[a-z0-9]([-a-z0-9_.]{0,61}[a-z0-9])?")
MOST = 10_000  # the route table holds them all


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`routes.Tenant` as a caller may set it."""

    rate: float | None = None
    burst: int = 1
    quota: int | None = None
    quota_period_s: float = 86400.0
    weight: float = 1.0
    deployments: tuple[str, ...] = ()
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Tenants:
    controller: Controller

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/tenants", self._list),
            web.put("/api/v1/tenants/{name}", self._put),
            web.delete("/api/v1/tenants/{name}", self._delete),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        found = await self.controller.call(tenants.tenants, self.controller.store)
        return answered({"tenants": [_document(one) for one in found]})

    async def _put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"tenant {name[:80]!r}: a name is 1 to 63 of a-z 0-9 - _ . with a letter or digit at its ends"
            )
        limits = _limits(await document_of(request, empty=True))
        if name not in self.controller.tenants and len(self.controller.tenants) >= MOST:
            raise InvalidInput(f"there are {MOST} tenants, which is the most")
        key = await self.controller.change(
            tenants.put_tenant, self.controller.store, name, msgspec.structs.asdict(limits)
        )
        document: dict[str, object] = {"name": name, **msgspec.structs.asdict(limits)}
        if key is not None:
            document["key"] = key
        return answered(document)

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self.controller.change(tenants.delete_tenant, self.controller.store, name)
        return answered({"name": name})


def _limits(document: dict[str, object]) -> Limits:
    for key in document:
        if key not in Limits.__struct_fields__:
            raise InvalidInput(f"there is no {key[:80]!r}{nearest(key, Limits.__struct_fields__)}")
    try:
        limits = msgspec.convert(document, Limits)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"tenant: {in_words(error)}") from None
    if limits.rate is not None and not 0 < limits.rate <= 1e9:
        raise InvalidInput(f"rate is {limits.rate:g}; requests per second above 0, or left out for no limit")
    if not 1 <= limits.burst <= 10**9:
        raise InvalidInput(f"burst is {limits.burst}; at least 1")
    if limits.quota is not None and not 0 <= limits.quota <= 10**15:
        raise InvalidInput(f"quota is {limits.quota}; at least 0, or left out for none")
    for name in ("tokens_per_minute", "tokens_per_day"):
        tokens = getattr(limits, name)
        if tokens is not None and not 1 <= tokens <= 10**15:
            raise InvalidInput(f"{name} is {tokens}; at least 1, or left out for no limit")
    if not 1 <= limits.quota_period_s <= 366 * 86400:
        raise InvalidInput(f"quota_period_s is {limits.quota_period_s:g}; 1 s to 366 days")
    if not 1e-6 <= limits.weight <= 1e6:
        raise InvalidInput(f"weight is {limits.weight:g}; above 0")
    return limits


def _document(tenant: Tenant) -> dict[str, object]:
    document = msgspec.structs.asdict(tenant)
    del document["key_sha256"]
    return document
