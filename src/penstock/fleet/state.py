"""What is: the values that store, controller, drivers and policies hand to each other. Times are seconds of the wall
clock (since the epoch) unless a name says otherwise, because they outlive processes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.fleet.spec import Deployment, Run

# Upper bounds of the latency histogram of an arm, in seconds: 0.1 ms to 100 s, each 1.3 times the one before, so that a
# quantile is known to 15 %. One more bucket holds what took longer.
LATENCY_BOUNDS_S = tuple(1e-4 * 1.3**step for step in range(54))


class Phase(enum.StrEnum):
    """Where a revision stands. Theory of operation:

        PENDING ─▶ STARTING ─▶ READY ─▶ RETIRED          RETIRED ─▶ STARTING (rollback)
                      └──────▶ FAILED  ◀── (rolled back by a guard, or never ready in time)

    READY means that it was ready once: with `replicas.minimum` 0 a ready revision may have no replica at a moment.
    """

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    RETIRED = "retired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Revision:
    """An immutable numbered snapshot of a deployment's `Run`. Numbers count from 1 and are never used again."""

    deployment: str
    number: int
    run: Run
    created_at: float
    phase: Phase = Phase.PENDING
    reason: str = ""  # of FAILED, for people: what happened, with the figures that decided
    phase_at: float = 0.0  # since when it is in this phase
    content: Mapping[str, str] = field(default_factory=dict)  # what its first replica loaded, as `Replica.content`


class ReplicaState(enum.StrEnum):
    """STARTING ─▶ READY ─▶ DRAINING ─▶ (gone from the list);  FAILED: it ended, or never came up; `reason` says why."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Replica:
    """One running runtime, as its driver reports it."""

    id: str  # unique for ever; "fraud-2-k3x9"
    deployment: str
    revision: int
    state: ReplicaState
    http: str = ""  # "127.0.0.1:40123"; known once READY
    grpc: str = ""
    started_at: float = 0.0
    ready_at: float | None = None
    reason: str = ""
    pid: int | None = None
    place: str = ""  # which GPUs, or which machine; the placement's word
    # What it has loaded, known once READY: SHA-256 by version of the model, and of the files `archive`, `requirements`.
    content: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArmStatistics:
    """What is known of one revision in one experiment. Counts of several routers and times add up."""

    requests: int = 0  # answered, whatever the answer
    errors: int = 0  # 5xx, and requests lost with their replica; the caller's faults (4xx) are none
    latency: tuple[
        int, ...
    ] = ()  # counts per LATENCY_BOUNDS_S, and one above; of answers that are no errors; () is all 0
    rewards: int = 0  # how many rewards came
    reward_sum: float = 0.0
    reward_squares: float = 0.0  # sum of squares
    # Of contextual policies: sums over rewarded decisions of x xᵀ (d·d, row by row) and of reward·x (d); () is none.
    gram: tuple[float, ...] = ()
    moment: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One second of one revision's load, summed over all routers.

    `concurrency` is the time average of requests in flight at replicas plus those held in routers."""

    at: float
    concurrency: float
    requests_per_s: float  # arrived
    queue_wait_s: float  # 95th percentile of the wait for a replica, of those sent in this second; 0 with none
    waiting: int = 0  # held in routers at the sample's end


@dataclass(frozen=True, slots=True)
class Experiment:
    """A time in which the arms and the policy did not change. Statistics belong to one experiment.

    `memory` is the policy's own (JSON-able), kept in the store; `verdict` tells what the policy decided at its end."""

    id: int
    arms: tuple[int, ...]  # revision numbers, the stable one first
    stable: int
    started_at: float
    memory: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[int, float] = field(default_factory=dict)  # as last decided
    alarms: tuple[str, ...] = ()
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One deployment with all that the controller knows of it."""

    wish: Deployment
    generation: int  # of the wish: counts every accepted change
    revisions: tuple[Revision, ...]  # oldest first
    experiment: Experiment | None  # None until a revision was ready
    replicas: tuple[Replica, ...] = ()
    paused: bool = False  # a person took over the weights; policies only watch
    deleting: bool = False
