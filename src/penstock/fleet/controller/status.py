"""What the HTTP API says of a deployment: one JSON-able document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.fleet import spec
from penstock.fleet.controller.counts import counts, rollout_to, shadow_of
from penstock.fleet.controller.routing import weights
from penstock.fleet.controller.view import View
from penstock.fleet.state import LATENCY_BOUNDS_S, ArmStatistics, LoadSample, Phase, ReplicaState
from penstock.fleet.store.records import Event, Record
from penstock.telemetry.exposition import Row

_REVISION = ("deployment", "revision")

# The controller's metrics; docs/metrics.md says the same.
FIGURES = (
    Row("penstock_fleet_replicas", "gauge", "replicas", ("deployment", "state"), "Replicas, by state"),
    Row("penstock_fleet_replicas_wished", "gauge", "replicas", ("deployment",), "Replicas wished, all arms together"),
    Row("penstock_fleet_generation", "gauge", "1", ("deployment",), "Accepted changes of the wish"),
    Row("penstock_fleet_requests_waiting", "gauge", "requests", ("deployment",), "Requests held in routers"),
    Row("penstock_fleet_concurrency", "gauge", "requests", ("deployment",), "Requests in flight or held, last second"),
    Row(
        "penstock_fleet_revision_share", "gauge", "1", _REVISION, "Share of the requests that the revision gets, 0 to 1"
    ),
    Row("penstock_fleet_revision_reward", "gauge", "1", _REVISION, "Mean reward since the experiment began"),
    Row("penstock_fleet_alarms", "gauge", "alarms", ("deployment",), "Alarms of the traffic policy"),
    Row("penstock_fleet_table_version", "gauge", "1", (), "Version of the route table"),
    Row("penstock_fleet_routers", "gauge", "routers", (), "Routers heard of in the last 3 s"),
    Row("penstock_fleet_failed_steps_total", "counter", "steps", (), "Looks at the fleet that ended with an error"),
)


def status(
    view: View, statistics: Mapping[int, ArmStatistics], load: LoadSample | None, events: Sequence[Event], now: float
) -> dict[str, object]:
    """The document of one deployment; see docs/platform.md for its fields."""
    record = view.record
    state, experiment = record.state, record.state.experiment
    phase, message = phase_of(view)
    return {
        "name": record.name,
        "generation": state.generation,
        "wish": spec.write(state.wish),
        "phase": phase,
        "message": message,
        "policy": state.wish.traffic.policy,
        "paused": state.paused,
        "stable": experiment.stable if experiment else None,
        "revision": record.revision,
        "experiment": experiment.id if experiment else None,
        "size": record.size,
        "arms": _arms(view, statistics, now),
        "replicas": [
            {
                "id": one.id, "revision": one.revision, "state": one.state.value, "http": one.http, "grpc": one.grpc,
                "pid": one.pid, "started_at": one.started_at, "ready_at": one.ready_at, "reason": one.reason,
                "place": one.place, "concurrency": None,
            }
            for one in sorted(view.replicas, key=lambda one: (one.revision, one.started_at, one.id))
        ],
        "revisions": [
            {
                "number": one.number, "phase": one.phase.value, "created_at": one.created_at, "reason": one.reason,
                "model": one.run.model or one.run.graph, "phase_at": one.phase_at,
            }
            for one in state.revisions
        ],
        "alarms": list(experiment.alarms) if experiment else [],
        "explanation": experiment.explanation if experiment else "",
        "waiting": load.waiting if load else 0,
        "requests_per_s": load.requests_per_s if load else 0.0,
        "concurrency": load.concurrency if load else 0.0,
        "scaling_reason": record.size_reason,
        "events": [event_document(one) for one in events],
    }  # fmt: skip


def event_document(event: Event) -> dict[str, object]:
    return {"id": event.id, "at": event.at, "kind": event.kind, "message": event.message}


def phase_of(view: View) -> tuple[str, str]:
    """The phase of the whole deployment, and why it is not simply ready."""
    record = view.record
    if record.state.deleting:
        return "deleting", f"{len(view.replicas)} replicas still end"
    wished = record.find(record.revision)
    failed = wished is not None and wished.phase is Phase.FAILED
    if record.state.experiment is None:
        if failed and wished is not None and not record.members:
            return "failed", f"revision {wished.number}: {wished.reason}"
        return "deploying", _coming(view, record.revision)
    target = rollout_to(record)
    if target is not None:
        return "deploying", _coming(view, target)
    serving = sum(len(view.ready(arm)) for arm in record.state.experiment.arms)
    if record.size and serving == 0:
        return "degraded", _coming(view, record.state.experiment.stable)
    if failed and wished is not None:
        return "degraded", f"revision {wished.number} failed, revision {record.stable} serves: {wished.reason}"
    joining = [one.number for one in record.members if one.phase is not Phase.READY and one.number != shadow_of(record)]
    if joining:
        return "deploying", _coming(view, joining[-1])
    if record.size == 0:
        return "scaled-to-zero", "no replica; the next request wakes one"
    if serving < record.size:
        return "degraded", f"{serving} of {record.size} replicas ready{_trouble(view, record)}"
    return "ready", ""


def _coming(view: View, number: int) -> str:
    if number in view.unplaced:
        return f"revision {number} waits for room: {view.unplaced[number]}"
    if number not in view.prepared and not view.live(number):
        return f"revision {number} is prepared"
    text = f"revision {number}: {len(view.ready(number))} replicas ready, {len(view.starting(number))} start"
    trouble = view.troubles.get(number)
    return f"{text}; {trouble.count} failed, the last: {trouble.reason}" if trouble else text


def _trouble(view: View, record: Record) -> str:
    reasons = [
        f"revision {number} waits for room: {reason}"
        for number, reason in view.unplaced.items()
        if record.find(number) is not None
    ]
    reasons += [f"revision {number}: {trouble.reason}" for number, trouble in view.troubles.items()]
    return f"; {'; '.join(reasons)}" if reasons else ""


def _arms(view: View, statistics: Mapping[int, ArmStatistics], now: float) -> list[dict[str, object]]:
    record = view.record
    shares, wanted = weights(view), counts(view, now).by_revision
    arms = record.state.experiment.arms if record.state.experiment else ()
    numbers = [*arms, *(one.number for one in record.members if one.number not in arms)]
    return [_arm(view, number, shares, wanted, statistics.get(number, ArmStatistics())) for number in numbers]


def _arm(
    view: View, number: int, shares: Mapping[int, float], wanted: Mapping[int, int], known: ArmStatistics
) -> dict[str, object]:
    revision = view.record.find(number)
    return {
        "revision": number,
        "weight": shares.get(number, 0.0),
        "phase": revision.phase.value if revision else "",
        "shadow": number == shadow_of(view.record),
        "replicas_ready": len(view.ready(number)),
        "replicas_wished": wanted.get(number, 0),
        "requests": known.requests,
        "errors": known.errors,
        "error_rate": known.errors / known.requests if known.requests else None,
        "p50_ms": _milliseconds(quantile(known.latency, 0.5)),
        "p99_ms": _milliseconds(quantile(known.latency, 0.99)),
        "rewards": known.rewards,
        "mean_reward": known.reward_sum / known.rewards if known.rewards else None,
        "reason": revision.reason if revision else "",
    }


def quantile(latency: Sequence[int], share: float) -> float | None:
    """The upper bound in seconds of the bucket that holds the quantile; None without any latency."""
    total = sum(latency)
    if not total:
        return None
    seen = 0
    for bound, count in zip((*LATENCY_BOUNDS_S, LATENCY_BOUNDS_S[-1]), latency, strict=False):
        seen += count
        if seen >= share * total:
            return bound
    return LATENCY_BOUNDS_S[-1]


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def figures(
    views: Mapping[str, View],
    loads: Mapping[str, LoadSample | None],
    statistics: Mapping[str, Mapping[int, ArmStatistics]],
) -> list[tuple[str, tuple[str, ...], float]]:
    """The controller's metrics: name, label values, value."""
    out: list[tuple[str, tuple[str, ...], float]] = []
    for name, view in views.items():
        for state in ReplicaState:
            count = sum(one.state is state for one in view.replicas)
            out.append(("penstock_fleet_replicas", (name, state.value), count))
        out.append(("penstock_fleet_replicas_wished", (name,), view.record.size))
        out.append(("penstock_fleet_generation", (name,), view.record.state.generation))
        load = loads.get(name)
        out.append(("penstock_fleet_requests_waiting", (name,), load.waiting if load else 0))
        out.append(("penstock_fleet_concurrency", (name,), load.concurrency if load else 0.0))
        experiment, known = view.record.state.experiment, statistics.get(name, {})
        out.append(("penstock_fleet_alarms", (name,), len(experiment.alarms) if experiment else 0))
        for number, share in weights(view).items():
            out.append(("penstock_fleet_revision_share", (name, str(number)), share))
            arm = known.get(number, ArmStatistics())
            if arm.rewards:
                out.append(("penstock_fleet_revision_reward", (name, str(number)), arm.reward_sum / arm.rewards))
    return out
