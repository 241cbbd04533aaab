"""What routers report, as one load sample per second and deployment. Pure but for being told the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.fleet.routes import Load, Report
from penstock.fleet.scaling import WINDOW_S
from penstock.fleet.state import LoadSample

# A router reports each second. One that is silent for so long is gone, with the requests it held.
SILENT_S = 3.0
_MOST_ROUTERS = 256  # ids come from reports; more than that is nobody's fleet on one machine


@dataclass(slots=True)
class _Router:
    """Reports since the last sample, or the last one of before, while none came."""

    at: float
    fresh: bool
    reports: list[Report] = field(default_factory=list)


class Demand:
    """All deployments' samples. Times are wall clock."""

    def __init__(self) -> None:
        self._routers: dict[str, _Router] = {}
        self._samples: dict[str, deque[LoadSample]] = {}

    def report(self, report: Report, now: float) -> None:
        """Takes a router's word."""
        router = self._routers.get(report.router)
        if router is None:
            if len(self._routers) >= _MOST_ROUTERS:
                oldest = min(self._routers, key=lambda id: self._routers[id].at)
                del self._routers[oldest]
            router = self._routers[report.router] = _Router(now, True)
        if not router.fresh:
            router.reports.clear()
        router.at, router.fresh = now, True
        router.reports.append(report)

    def sample(self, names: Iterable[str], now: float) -> None:
        """Adds one sample for each deployment, once a second; forgets deployments that are not named. Without a router
        that speaks nothing is known, so nothing is added."""
        for id in [id for id, router in self._routers.items() if now - router.at > SILENT_S]:
            del self._routers[id]
        known = set(names)
        for gone in self._samples.keys() - known:
            del self._samples[gone]
        if not self._routers:
            return
        sums: dict[str, LoadSample] = {}
        for router in self._routers.values():
            for name, sample in _averages(router.reports, now).items():
                sums[name] = _added(sums.get(name), sample)
            router.fresh = False
        for name in known:
            samples = self._samples.setdefault(name, deque(maxlen=WINDOW_S))
            if samples and samples[-1].at >= now:  # the clock was set back: what is later than now is no past
                samples.clear()
            samples.append(sums.get(name) or LoadSample(now, 0.0, 0.0, 0.0))

    def samples(self, name: str) -> Sequence[LoadSample]:
        """Those of one deployment, oldest first."""
        return tuple(self._samples.get(name, ()))

    def last(self, name: str) -> LoadSample | None:
        samples = self._samples.get(name)
        return samples[-1] if samples else None


def waits(report: Report) -> set[str]:
    """The deployments for which requests are held in the router."""
    return {load.deployment for load in report.loads if load.waiting > 0}


def _averages(reports: Sequence[Report], now: float) -> dict[str, LoadSample]:
    """One router's reports as one sample of each deployment. Revisions add up; reports are weighted by their time."""
    total_s = sum(max(report.seconds, 1e-3) for report in reports)
    found: dict[str, list[tuple[float, Load]]] = {}
    for report in reports:
        for load in report.loads:
            found.setdefault(load.deployment, []).append((max(report.seconds, 1e-3), load))
    last = {load.deployment: 0 for load in reports[-1].loads} if reports else {}
    for load in reports[-1].loads if reports else ():
        last[load.deployment] += load.waiting
    return {
        name: LoadSample(
            at=now,
            concurrency=sum(seconds * load.concurrency for seconds, load in loads) / total_s,
            requests_per_s=sum(load.requests for _, load in loads) / max(total_s, 0.5),
            queue_wait_s=max(load.queue_wait_s for _, load in loads),
            waiting=last.get(name, 0),
        )
        for name, loads in found.items()
    }


def _added(one: LoadSample | None, other: LoadSample) -> LoadSample:
    if one is None:
        return other
    return LoadSample(
        other.at,
        one.concurrency + other.concurrency,
        one.requests_per_s + other.requests_per_s,
        max(one.queue_wait_s, other.queue_wait_s),
        one.waiting + other.waiting,
    )
