"""Asks the traffic and scaling policies of a deployment. A policy that raises changes nothing, and is logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from penstock import plugins
from penstock.core.errors import InvalidInput, NotFound, PenstockError
from penstock.core.nearest import nearest
from penstock.fleet import scaling, traffic
from penstock.fleet.bounds import bounded, largest
from penstock.fleet.controller.view import View
from penstock.fleet.scaling import Load, Size
from penstock.fleet.spec import Deployment
from penstock.fleet.state import ArmStatistics, LoadSample
from penstock.fleet.traffic import Arm, Decision, Observation

log = logging.getLogger("penstock.controller")

TRAFFIC = "penstock.fleet.traffic"
SCALING = "penstock.fleet.scaling"


@dataclass(frozen=True, slots=True)
class Sized:
    replicas: int
    reason: str
    memory: Mapping[str, object]


def check(wish: Deployment) -> None:
    """Lets the policies look at their options. Raises: InvalidInput, NotFound: no such policy."""
    policy = traffic_policy(wish.traffic.policy)
    policy.options(wish.traffic.options)
    for scaler in wish.scaling:
        scaling_policy(scaler.policy).options(scaler.options)


def traffic_policy(name: str) -> traffic.Policy:
    """Raises: InvalidInput."""
    return _policy(TRAFFIC, "traffic", name)  # type: ignore[return-value]  # what a plug owes is tested by conformance


def scaling_policy(name: str) -> scaling.Policy:
    """Raises: InvalidInput."""
    return _policy(SCALING, "scaling", name)  # type: ignore[return-value]  # as above


def _policy(folder: str, what: str, name: str) -> object:
    """A plug; `epsilon-greedy` is `epsilon_greedy`. One that does not exist is a fault of the document naming it."""
    try:
        return plugins.load(folder, name.replace("-", "_"))
    except NotFound:
        known = plugins.names(folder)
        raise InvalidInput(f"there is no {what} policy {name!r}{nearest(name, known)}; {', '.join(known)}") from None


def weigh(view: View, statistics: Mapping[int, ArmStatistics], now: float) -> Decision | None:
    """What the traffic policy decides; None when it fails, or there is nothing to decide."""
    record = view.record
    experiment = record.state.experiment
    if experiment is None:
        return None
    wish = record.state.wish
    arms = [
        Arm(
            number,
            bool(view.ready(number)),
            min((one.ready_at or now for one in view.ready(number)), default=now),
            statistics.get(number, ArmStatistics()),
        )
        for number in experiment.arms
    ]
    observed = Observation(now, experiment.started_at, arms, experiment.stable, experiment.memory)
    try:
        policy = traffic_policy(wish.traffic.policy)
        return policy.decide(policy.options(wish.traffic.options), observed)
    except PenstockError as error:
        log.error("traffic_policy_failed", extra={"deployment": wish.name, "error": error.message})
    except Exception:
        log.exception("traffic_policy_failed", extra={"deployment": wish.name, "policy": wish.traffic.policy})
    return None


def size(view: View, samples: tuple[LoadSample, ...], memory: Mapping[str, object], now: float) -> Sized:
    """How many replicas are wished. As it was when every policy fails."""
    record = view.record
    wish, before = record.state.wish, record.size
    if record.state.experiment is None:  # the first revision comes up: so many, whatever is asked for
        return Sized(max(1, wish.replicas.minimum), "the first replicas", memory)
    ready = sum(len(view.ready(arm)) for arm in record.state.experiment.arms)
    sizes: dict[str, Size] = {}
    kept: dict[str, object] = {}
    for place, scaler in enumerate(wish.scaling):
        key = f"{place}:{scaler.policy}"
        own = memory.get(key)
        load = Load(now, samples, ready, before, own if isinstance(own, Mapping) else {})
        try:
            policy = scaling_policy(scaler.policy)
            sizes[key] = policy.size(policy.options(scaler.options), load)
            kept[key] = dict(sizes[key].memory)
        except PenstockError as error:
            log.error("scaling_policy_failed", extra={"deployment": wish.name, "error": error.message})
        except Exception:
            log.exception("scaling_policy_failed", extra={"deployment": wish.name, "policy": scaler.policy})
    wished = largest({key.partition(":")[2]: value for key, value in sizes.items()}) if sizes else None
    bound = bounded(wished or Size(before, "no policy answers"), wish.replicas, Load(now, samples, ready, before))
    return Sized(bound.replicas, bound.reason, kept)
