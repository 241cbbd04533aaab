"""A world of arms with known chances, for tests of traffic policies: requests are drawn from weights in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from penstock.fleet.state import LATENCY_BOUNDS_S, ArmStatistics
from penstock.fleet.traffic import Arm, Decision, Observation, Policy

Rewards = Callable[[np.random.Generator, int], "np.ndarray[Any, np.dtype[np.float64]]"]


@dataclass(frozen=True)
class Behaviour:
    """Of one arm: its errors, its latency (log-normal around `latency_s`) and its rewards."""

    error_rate: float = 0.0
    latency_s: float = 0.01
    rewards: Rewards | None = None


def coin(chance: float) -> Rewards:
    return lambda rng, number: rng.binomial(1, chance, number).astype(float)


def shares(chance: float, strength: float = 4.0) -> Rewards:
    """Fractions in [0, 1] with this mean."""
    return lambda rng, number: rng.beta(chance * strength, (1 - chance) * strength, number)


def normal(mean: float, deviation: float) -> Rewards:
    return lambda rng, number: rng.normal(mean, deviation, number)


@dataclass
class World:
    """Arms by revision, the stable one first. Time passes with the requests, `per_s` of them a second."""

    arms: dict[int, Behaviour]
    rng: np.random.Generator
    per_s: float = 100.0
    now: float = 1000.0
    statistics: dict[int, ArmStatistics] = field(default_factory=dict)
    memory: Mapping[str, object] = field(default_factory=dict)
    pulls: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started_at = self.now
        for revision in self.arms:
            self.statistics.setdefault(revision, ArmStatistics())
            self.pulls.setdefault(revision, 0)

    def observed(self, ready: Sequence[int] | None = None) -> Observation:
        arms = [
            Arm(revision, ready is None or revision in ready, self.started_at, self.statistics[revision])
            for revision in self.arms
        ]
        return Observation(self.now, self.started_at, arms, next(iter(self.arms)), self.memory)

    def step(self, policy: Policy, options: Any, requests: int, ready: Sequence[int] | None = None) -> Decision:
        """One decision, and so many requests drawn from it. Memory goes through JSON, as in the store."""
        decision = policy.decide(options, self.observed(ready))
        self.memory = json.loads(json.dumps(decision.memory))
        revisions = list(self.arms)
        counts = self.rng.multinomial(requests, [decision.weights[revision] for revision in revisions])
        for revision, number in zip(revisions, counts, strict=True):
            self.answer(revision, int(number))
        self.now += requests / self.per_s
        return decision

    def answer(self, revision: int, number: int) -> None:
        behaviour, known = self.arms[revision], self.statistics[revision]
        self.pulls[revision] += number
        errors = int(self.rng.binomial(number, behaviour.error_rate))
        latency = np.asarray(known.latency or (0,) * (len(LATENCY_BOUNDS_S) + 1))
        took = behaviour.latency_s * np.exp(self.rng.normal(0, 0.3, number - errors))
        latency = latency + np.bincount(np.searchsorted(LATENCY_BOUNDS_S, took), minlength=len(latency))
        known = replace(
            known,
            requests=known.requests + number,
            errors=known.errors + errors,
            latency=tuple(latency.tolist()),
        )
        if behaviour.rewards is not None:
            values = behaviour.rewards(self.rng, number - errors)
            known = replace(
                known,
                rewards=known.rewards + len(values),
                reward_sum=known.reward_sum + float(values.sum()),
                reward_squares=known.reward_squares + float((values**2).sum()),
            )
        self.statistics[revision] = known


def regret(policy: Policy, options: Any, means: Sequence[float], rewards: Sequence[Rewards], seed: int) -> float:
    """Expected reward that was missed in 20,000 requests, with a new decision every 1,000."""
    behaviours = {revision + 1: Behaviour(rewards=one) for revision, one in enumerate(rewards)}
    world = World(behaviours, np.random.default_rng(seed))
    for _ in range(20):
        world.step(policy, options, 1000)
    return sum((max(means) - mean) * world.pulls[revision + 1] for revision, mean in enumerate(means))
