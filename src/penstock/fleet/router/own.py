"""The router's own paths: probes, metrics, rewards."""

from __future__ import annotations

import re
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import orjson

from penstock.core.errors import NotFound, NotReady, PermissionDenied, Unsupported
from penstock.fleet.router.metrics import render
from penstock.fleet.router.plan import Own, Said
from penstock.fleet.router.request_head import Head
from penstock.fleet.router.tenants import PUBLIC_PATHS

if TYPE_CHECKING:
    from penstock.fleet.router.front import HttpFront

_JSON: Final = "application/json"
_INDEX: Final = "/v2/repository/index"
_MODEL: Final = re.compile(r"/v1/models/[^/:]+")
_FEEDBACK: Final = re.compile(r"/(?:v2/models|endpoints)/([a-z0-9][-a-z0-9_.]{0,62})/feedback")
PROBES: Final = PUBLIC_PATHS | {"/livez", "/readyz"}
"""Paths that need no key."""


class OwnPaths:
    """Finds what answers a request that is for no replica."""

    def __init__(self, front: HttpFront) -> None:
        self._front = front

    def find(self, head: Head) -> Own | None:
        """None: it is for a deployment. Raises: Unsupported: the path is ours, its method is not."""
        path, method = head.path, head.method
        if path in PROBES or path in ("/metrics", "/v2", "/v2/models", "/v1/models"):
            if method not in (b"GET", b"HEAD"):
                raise Unsupported(f"{path} answers GET")
            if path == "/metrics":
                return self._metrics
            if path in PROBES:
                return self._live if path.endswith(("live", "livez")) else self._ready
            if path == "/v1/models":
                return self._language_models
            return self._server if path == "/v2" else self._models
        if method == b"GET" and _MODEL.fullmatch(path) and self._front.balancer.table.by_name(path[11:]) is None:
            return self._language_model  # an adapter's name, perhaps
        if path == _INDEX or _FEEDBACK.fullmatch(path):
            if method != b"POST":
                raise Unsupported(f"{path} answers POST")
            return self._index if path == _INDEX else self._feedback
        return None

    def _live(self, head: Head, body: bytes) -> Said:
        return 200, b'{"live":true}', _JSON

    def _ready(self, head: Head, body: bytes) -> Said:
        """Ready once there is a table: what is not there can be waited for, or is nobody's."""
        if self._front.balancer.table.version and not self._front.draining:
            return 200, b'{"ready":true}', _JSON
        return 503, b'{"ready":false,"error":"the router has no table yet, or is stopping"}', _JSON

    def _server(self, head: Head, body: bytes) -> Said:
        return 200, orjson.dumps({"name": "penstock", "version": version("penstock"), "extensions": []}), _JSON

    def _models(self, head: Head, body: bytes) -> Said:
        return 200, orjson.dumps({"models": self._callable(head)}), _JSON

    async def _language_models(self, head: Head, body: bytes) -> Said:
        """OpenAI's list. `models` are all deployments, whatever they are."""
        tenant = self._front.authenticate(head)
        found = await self._front.language.models(tenant)
        return 200, orjson.dumps({"object": "list", "data": found, "models": self._callable(head)}), _JSON

    async def _language_model(self, head: Head, body: bytes) -> Said:
        name = head.path.removeprefix("/v1/models/")
        found = await self._front.language.models(self._front.authenticate(head))
        for model in found:
            if model["id"] == name:
                return 200, orjson.dumps(model), _JSON
        raise NotFound(f"there is no model {name[:256]!r}")

    def _index(self, head: Head, body: bytes) -> Said:
        """The deployments as models, READY where a request finds a replica, or wakes one."""
        services = self._front.balancer.services
        ready = {name: services[name].ready for name in self._callable(head)}
        rows = [
            {
                "name": name, "version": "", "state": "READY" if is_ready else "UNAVAILABLE",
                "reason": "" if is_ready else "no replica is ready",
            }
            for name, is_ready in ready.items()
        ]  # fmt: skip
        return 200, orjson.dumps(rows), _JSON

    def _callable(self, head: Head) -> list[str]:
        """The deployments that the caller may call."""
        tenant = self._front.authenticate(head)
        return [
            name for name in sorted(self._front.balancer.services)
            if tenant is None or not tenant.deployments or name in tenant.deployments
        ]  # fmt: skip

    def _metrics(self, head: Head, body: bytes) -> Said:
        self._front.authenticate(head)
        return 200, render(self._front).encode(), "text/plain; version=0.0.4; charset=utf-8"

    async def _feedback(self, head: Head, body: bytes) -> Said:
        match = _FEEDBACK.fullmatch(head.path)
        assert match is not None
        name = match[1]
        tenant = self._front.authenticate(head)
        if self._front.balancer.table.by_name(name) is None:
            raise NotFound(f"there is no deployment {name}")
        if tenant is not None and tenant.deployments and name not in tenant.deployments:
            raise PermissionDenied(f"tenant {tenant.name} may not call {name!r}")
        feedback = self._front.hooks.feedback
        if feedback is None:
            raise NotReady("this router takes no rewards: it has no database", retry_after_s=1.0)
        status, answer = await feedback.feedback(name, body)
        return status, answer, _JSON


def wall_clock() -> float:
    """Seconds since the epoch, which quotas are counted in."""
    return time.time()
