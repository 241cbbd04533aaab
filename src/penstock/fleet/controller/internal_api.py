"""What routers, the supervisor and monitoring call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.core.errors import InvalidInput
from penstock.fleet.controller.deployments_api import LONGEST_POLL_S
from penstock.fleet.controller.http_calls import answered, number
from penstock.fleet.controller.loop import Controller
from penstock.fleet.controller.status import FIGURES, figures
from penstock.fleet.routes import Report
from penstock.telemetry.exposition import CONTENT_TYPE

_ROUTER = re.compile(r"[-A-Za-z0-9_.:]{1,64}")


@dataclass(frozen=True, slots=True)
class Internals:
    controller: Controller
    admin_port: int | None
    shut_down: Callable[[float], Awaitable[None]]

    def routes(self, internals: bool) -> list[web.RouteDef]:
        shared = [web.get("/healthz", self._health), web.get("/metrics", self._metrics)]
        if not internals:
            return shared
        return [
            *shared,
            web.get("/internal/routes", self._routes),
            web.post("/internal/reports", self._reports),
            web.post("/internal/shutdown", self._shutdown),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        controller = self.controller
        return answered(
            {
                "status": "ok", "version": controller.version, "table_version": controller.tables.version,
                "routers": controller.tables.live(), "admin_port": self.admin_port, "fleet": controller.store.fleet_id,
            }
        )  # fmt: skip

    async def _metrics(self, request: web.Request) -> web.Response:
        controller = self.controller
        views = controller.views()
        found = figures(views, {name: controller.demand.last(name) for name in views}, controller.statistics)
        found.append(("penstock_fleet_table_version", (), controller.tables.version))
        found.append(("penstock_fleet_routers", (), len(controller.tables.live())))
        found.append(("penstock_fleet_failed_steps_total", (), controller.failures))
        text = await asyncio.to_thread(_exposition, found)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _routes(self, request: web.Request) -> web.Response:
        after = int(number(request, "after", 0, 2**62))
        router = _router(request.query.get("router", ""))
        seconds = number(request, "timeout_s", 30.0, LONGEST_POLL_S)
        self.controller.tables.heard(router, after)
        await self.controller.tables.told()
        body = await self.controller.tables.after(after, seconds)
        if body is None:
            return web.Response(status=304)
        return web.Response(body=body, content_type="application/json")

    async def _reports(self, request: web.Request) -> web.Response:
        try:
            report = msgspec.json.decode(await request.read(), type=Report)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InvalidInput(f"no report: {error}") from None
        _router(report.router)
        reply = await self.controller.report(report)
        return web.Response(body=msgspec.json.encode(reply), content_type="application/json")

    async def _shutdown(self, request: web.Request) -> web.Response:
        await self.shut_down(number(request, "grace_s", 30.0, 86400.0))
        return answered({"replicas": len(self.controller.driver.replicas())})


def _router(id: str) -> str:
    if not _ROUTER.fullmatch(id):
        raise InvalidInput(f"router is {id[:80]!r}; an id of 1 to 64 letters, digits and -_.:")
    return id


def _exposition(found: list[tuple[str, tuple[str, ...], float]]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Figures(found))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Figures(Collector):
    """Values by metric and labels, for one answer."""

    def __init__(self, found: list[tuple[str, tuple[str, ...], float]]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
        made = {row.name: kinds[row.kind](row.name, row.help, labels=row.labels) for row in FIGURES}
        for name, labels, value in self._found:
            made[name].add_metric(labels, value)
        yield from made.values()
