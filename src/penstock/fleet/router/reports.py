"""Tells the controller each second what this router saw, and at once when requests begin to wait for a sleeping
deployment; hands what was counted to the recorder."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from penstock.core.errors import NotReady
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.control import Control
from penstock.fleet.router.hooks import Hooks
from penstock.fleet.router.lanes import Lane, Service
from penstock.fleet.routes import Load, Reply, Report

log = logging.getLogger("penstock.router")

_EVERY_S = 1.0
_AT_ONCE_S = 0.05  # between reports of requests that begin to wait
_TIMEOUT_S = 5.0


class Reporter:
    """`run` is a task; `sleeping` is the balancer's `on_sleeping`."""

    def __init__(self, router: str, control: Control, balancer: Balancer, hooks: Hooks) -> None:
        self._router = router
        self._control = control
        self._balancer = balancer
        self._hooks = hooks
        self._last = balancer.clock()
        self._told: set[str] = set()  # deployments that were reported to be waited for
        self._now = asyncio.Event()

    def sleeping(self, service: Service) -> None:
        """A request waits for a deployment without a replica."""
        if service.endpoint.name not in self._told:
            self._told.add(service.endpoint.name)
            self._now.set()

    def table_changed(self) -> None:
        """The controller waits for the report of the new version, before it stops what left the table."""
        self._now.set()

    async def run(self) -> None:
        """Reports until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._now.clear()
            self.count()
            try:
                await self.report()
            except NotReady:
                await asyncio.sleep(_EVERY_S / 2)
            except Exception:
                log.exception("reporting failed")
            await asyncio.sleep(_AT_ONCE_S)

    def count(self) -> None:
        """Hands what the arms gained to the recorder. Statistics belong to the experiment that is in the table now."""
        recorder = self._hooks.recorder
        if recorder is None:
            return
        for service in self._balancer.services.values():
            for lane in service.lanes:
                gained = lane.tally.take()
                if gained is not None:
                    recorder.count(service.endpoint, lane.revision, gained)

    async def report(self) -> None:
        """Sends one report. Raises: NotReady: it did not arrive."""
        balancer, tenants = self._balancer, self._hooks.tenants
        now = balancer.clock()
        seconds, self._last = now - self._last, now
        loads = []
        for name, service in balancer.services.items():
            loads += [
                load for lane in (service.nowhere, *service.lanes) if (load := _load(name, lane, now)) is not None
            ]
            if not service.nowhere.waiting:
                self._told.discard(name)
        failing, balancer.failing = balancer.failing, set()
        used, tokens = tenants.take_used(), tenants.take_tokens()
        report = Report(
            self._router, balancer.table.version, seconds, tuple(loads), tuple(sorted(failing)), used, tokens
        )
        try:
            status, body = await self._control.call(
                "POST", "/internal/reports", msgspec.json.encode(report), timeout_s=_TIMEOUT_S
            )
            if status != 200:
                raise NotReady(f"it answered {status}: {body[:200].decode(errors='replace')}")
            tenants.replied(msgspec.json.decode(body, type=Reply))
        except (NotReady, msgspec.DecodeError) as error:
            tenants.keep_used(used)
            tenants.keep_tokens(tokens)
            balancer.failing |= failing
            self._told.clear()  # so that who waits still is told to the next controller at once
            raise NotReady(f"the report did not arrive: {error}") from None


def _load(name: str, lane: Lane, now: float) -> Load | None:
    """None of a lane that saw nothing, unless it has replicas: an idle revision's load is 0, not unknown."""
    waiting = lane.waiting
    concurrency, arrived, queue_wait_s = lane.meter.read(now)
    if not (lane.upstreams or concurrency or arrived or waiting):
        return None
    return Load(name, lane.revision, concurrency, arrived, queue_wait_s, waiting)
