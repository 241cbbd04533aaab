"""What the controller's HTTP API says of deployments. Fields that an older or newer controller lacks have defaults."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class ArmStatus(msgspec.Struct, frozen=True):
    """One revision in the current experiment. Rates and weights are 0 to 1; latencies are of answers without errors."""

    revision: int
    weight: float = 0.0
    phase: str = ""
    shadow: bool = False
    replicas_ready: int = 0
    replicas_wished: int = 0
    requests: int = 0
    errors: int = 0
    error_rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    rewards: int = 0
    mean_reward: float | None = None
    reason: str = ""


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One replica. Times are seconds since the epoch."""

    id: str
    revision: int
    state: str
    http: str = ""
    grpc: str = ""
    pid: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    reason: str = ""
    concurrency: float | None = None


class RevisionStatus(msgspec.Struct, frozen=True):
    """One immutable revision."""

    number: int
    phase: str
    created_at: float = 0.0
    reason: str = ""
    model: str = ""


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a deployment, for people."""

    id: int
    at: float
    kind: str
    message: str


class Status(msgspec.Struct, frozen=True):
    """One deployment. `phase` is ready, deploying, degraded, failed, scaled-to-zero or deleting; `revision` is the one
    that is wished."""

    name: str
    generation: int
    phase: str
    message: str = ""
    revision: int = 0
    policy: str = ""
    paused: bool = False
    stable: int | None = None
    wish: Mapping[str, object] = {}
    arms: tuple[ArmStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    revisions: tuple[RevisionStatus, ...] = ()
    alarms: tuple[str, ...] = ()
    explanation: str = ""
    waiting: int = 0
    requests_per_s: float = 0.0
    scaling_reason: str = ""
    events: tuple[Event, ...] = ()
    experiment: int | None = None

    def find(self, number: int) -> RevisionStatus | None:
        """The revision of that number."""
        return next((one for one in self.revisions if one.number == number), None)


class Difference(msgspec.Struct, frozen=True):
    """One changed key of a wish."""

    key: str
    before: object = None
    after: object = None


class Change(msgspec.Struct, frozen=True):
    """What a call changed. `revision` is the newest one after it."""

    name: str
    generation: int = 0
    revision: int = 0
    changed: tuple[Difference, ...] = ()


class TenantStatus(msgspec.Struct, frozen=True):
    """Who may call, and how much. `key` is there once, when it was made."""

    name: str
    rate: float | None = None
    burst: int = 1
    quota: int | None = None
    quota_period_s: float = 86400.0
    weight: float = 1.0
    deployments: tuple[str, ...] = ()
    key: str = ""
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
