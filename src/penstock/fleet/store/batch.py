"""What routers hand to the store: decisions, rewards and counts, as values without any database in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.fleet.state import ArmStatistics

Arm = tuple[str, int, int]
"""Deployment, experiment, revision: what statistics are kept for."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Which revision one request went to, and how likely that was. It is what a token carries."""

    id: str  # 16 hex digits
    deployment: str
    experiment: int
    revision: int
    propensity: float  # above 0, at most 1
    at: float  # wall clock, s
    context: tuple[float, ...] = ()  # of contextual policies

    @property
    def arm(self) -> Arm:
        return self.deployment, self.experiment, self.revision


@dataclass(frozen=True, slots=True)
class Reward:
    """What came of a decision. A decision has one reward: the first."""

    decision: Decision
    value: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one reward: the value that the decision has now, or None where it is too old to take one.

    It is another value than the one sent where there was one before."""

    value: float | None
    first: bool  # this one was counted


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """A line of the decision log. `reward` is None while none came."""

    decision: Decision
    reward: float | None = None
    rewarded_at: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one writer saw since its last batch; it is written whole or not at all.

    A writer numbers its batches from 1. One whose number was written already changes no counts: its writer did not hear
    that the commit had succeeded. `statistics` are differences; their rewards stay 0, because they follow from
    `rewards`. `comparisons` are JSON documents of `evidence.comparison`, by the shadow's arm.
    """

    writer: str
    sequence: int
    at: float  # wall clock, s
    decisions: tuple[Decision, ...] = ()
    rewards: tuple[Reward, ...] = ()
    statistics: Mapping[Arm, ArmStatistics] = field(default_factory=dict)
    comparisons: Mapping[Arm, str] = field(default_factory=dict)
