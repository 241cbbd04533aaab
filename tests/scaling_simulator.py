"""Replicas behind a router, on a simulated clock: what scaling policies are judged by.

Requests arrive by a rate over time, are held while every replica is full or none is ready, and take a service time.
Replicas take a while to start; those that are to go drain, starting ones first. Each second the policies see what the
routers would have reported, and what they answer is done.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.fleet.bounds import bounded, largest
from penstock.fleet.scaling import WINDOW_S, Load
from penstock.fleet.spec import Replicas
from penstock.fleet.state import LoadSample

EPOCH = 1_750_000_000.0


@dataclass
class Replica:
    ready_at: float
    busy: int = 0
    draining: bool = False


@dataclass
class Outcome:
    """Times are seconds since the simulation's begin."""

    wished: list[tuple[float, int]] = field(default_factory=list)  # every change
    ready: list[tuple[float, int]] = field(default_factory=list)  # each second
    answered: int = 0
    late: int = 0  # held longer than their deadline
    held: list[tuple[float, float]] = field(default_factory=list)  # arrival, wait
    replica_seconds: float = 0.0
    busy_seconds: float = 0.0

    def turns(self, begin: float = 0.0, end: float = math.inf) -> int:
        """How often the wished number changed its direction."""
        before = [size for at, size in self.wished if at < begin]
        sizes = [*before[-1:], *(size for at, size in self.wished if begin <= at <= end)]
        signs = [1 if after > first else -1 for first, after in itertools.pairwise(sizes)]
        return sum(1 for first, after in itertools.pairwise(signs) if first != after)

    def first_growth(self, after: float) -> float:
        """How long after a moment the wished number grew first."""
        size = next((size for at, size in reversed(self.wished) if at <= after), 0)
        return next(at for at, wished in self.wished if at > after and wished > size) - after

    def size_at(self, at: float) -> int:
        return next(size for since, size in reversed(self.wished) if since <= at)

    def wait(self, quantile: float, begin: float = 0.0, end: float = math.inf) -> float:
        waits = sorted(wait for at, wait in self.held if begin <= at < end)
        return waits[min(len(waits) - 1, int(len(waits) * quantile))] if waits else 0.0


def simulate(
    rate: Callable[[float], float], policies: Mapping[str, tuple[Any, Any]], *, seconds: float,
    service: Callable[[random.Random], float] = lambda chance: chance.expovariate(10.0),
    slots: int = 1, start_s: float = 2.0, minimum: int = 1, begin: int = 1,
    timeout_s: float = 60.0, seed: int = 0,
) -> Outcome:  # fmt: skip
    """What came of it. `policies` are plugs with their options; `slots` is how many requests a replica takes at once."""
    return _Simulation(
        rate, policies, service, slots, start_s, Replicas(minimum=minimum, maximum=100), timeout_s, random.Random(seed)
    ).run(seconds, begin)


class _Simulation:
    def __init__(
        self, rate: Callable[[float], float], policies: Mapping[str, tuple[Any, Any]],
        service: Callable[[random.Random], float], slots: int, start_s: float, bounds: Replicas, timeout_s: float,
        chance: random.Random,
    ) -> None:  # fmt: skip
        self.rate, self.policies, self.service, self.chance = rate, policies, service, chance
        self.slots, self.start_s, self.bounds, self.timeout_s = slots, start_s, bounds, timeout_s
        self.replicas: list[Replica] = []
        self.waiting: deque[float] = deque()
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = itertools.count()
        self.memories: dict[str, Mapping[str, object]] = {name: {} for name in policies}
        self.samples: deque[LoadSample] = deque(maxlen=WINDOW_S)
        self.outcome = Outcome()
        self.flying = 0
        self.area, self.area_at = 0.0, 0.0
        self.arrived = 0
        self.sent_waits: list[float] = []
        self.wished = 0

    def run(self, seconds: float, begin: int) -> Outcome:
        self.wished = begin
        self.replicas = [Replica(0.0) for _ in range(begin)]
        self.outcome.wished.append((0.0, begin))
        for second in range(int(seconds)):
            count = self._poisson(self.rate(second + 0.5))
            for _ in range(count):
                self._push(second + self.chance.random(), "arrive")
            self._push(second + 1.0, "tick")
        while self.events:
            at, _, kind, what = heapq.heappop(self.events)
            if at > seconds:
                break
            self.area += (at - self.area_at) * (self.flying + len(self.waiting))
            self.outcome.busy_seconds += (at - self.area_at) * self.flying / self.slots
            self.outcome.replica_seconds += (at - self.area_at) * len(self.replicas)
            self.area_at = at
            getattr(self, "_" + kind)(at, what)
        return self.outcome

    def _push(self, at: float, kind: str, what: Any = None) -> None:
        heapq.heappush(self.events, (at, next(self.order), kind, what))

    def _poisson(self, mean: float) -> int:
        if mean > 50:  # near enough
            return max(0, round(self.chance.gauss(mean, math.sqrt(mean))))
        limit, count, product = math.exp(-mean), 0, self.chance.random()
        while product > limit:
            count, product = count + 1, product * self.chance.random()
        return count

    def _arrive(self, at: float, _: object) -> None:
        self.arrived += 1
        self.waiting.append(at)
        self._dispatch(at)

    def _finish(self, at: float, replica: Replica) -> None:
        replica.busy -= 1
        self.flying -= 1
        self.outcome.answered += 1
        if replica.draining and replica.busy == 0:
            self.replicas.remove(replica)
        self._dispatch(at)

    def _started(self, at: float, _: object) -> None:
        self._dispatch(at)

    def _dispatch(self, at: float) -> None:
        while self.waiting:
            free = [r for r in self.replicas if r.ready_at <= at and not r.draining and r.busy < self.slots]
            if not free:
                return
            came = self.waiting.popleft()
            if at - came > self.timeout_s:
                self.outcome.late += 1
                continue
            replica = min(free, key=lambda r: r.busy)
            replica.busy += 1
            self.flying += 1
            self.sent_waits.append(at - came)
            self.outcome.held.append((came, at - came))
            self._push(at + self.service(self.chance), "finish", replica)

    def _tick(self, at: float, _: object) -> None:
        waits = sorted(self.sent_waits)
        self.samples.append(
            LoadSample(
                at=EPOCH + at - 1.0, concurrency=self.area, requests_per_s=float(self.arrived),
                queue_wait_s=waits[int(len(waits) * 0.95)] if waits else 0.0, waiting=len(self.waiting),
            )
        )  # fmt: skip
        self.area, self.arrived, self.sent_waits = 0.0, 0, []
        live = [replica for replica in self.replicas if not replica.draining]
        ready = sum(1 for replica in live if replica.ready_at <= at)
        self.outcome.ready.append((at, ready))
        sizes = {}
        for name, (plug, options) in self.policies.items():
            load = Load(EPOCH + at, list(self.samples), ready, self.wished, self.memories[name])
            sizes[name] = plug.size(options, load)
            self.memories[name] = sizes[name].memory
        load = Load(EPOCH + at, list(self.samples), ready, self.wished)
        wished = bounded(largest(sizes), self.bounds, load).replicas
        if wished != self.wished:
            self.outcome.wished.append((at, wished))
            self.wished = wished
        for _ in range(wished - len(live)):
            self.replicas.append(Replica(at + self.start_s))
            self._push(at + self.start_s, "started")
        for replica in sorted(live, key=lambda r: (r.ready_at <= at, r.busy))[: max(0, len(live) - wished)]:
            replica.draining = True
            if replica.busy == 0:
                self.replicas.remove(replica)


def step(before: float, after: float, at: float) -> Callable[[float], float]:
    return lambda now: after if now >= at else before


def ramp(begin: float, end: float, seconds: float) -> Callable[[float], float]:
    return lambda now: begin + (end - begin) * min(1.0, now / seconds)


def spike(base: float, top: float, at: float, width_s: float) -> Callable[[float], float]:
    return lambda now: top if at <= now < at + width_s else base


def sawtooth(low: float, high: float, period_s: float) -> Callable[[float], float]:
    return lambda now: low + (high - low) * (now % period_s) / period_s


def constant(value: float) -> Callable[[float], float]:
    return lambda now: value


def samples_of(values: Sequence[float], begin: float = EPOCH) -> list[LoadSample]:
    """A second each, with the value as concurrency and as rate."""
    return [LoadSample(begin + second, value, value, 0.0) for second, value in enumerate(values)]
