"""The route table of all deployments. Pure: from records, replicas and what traffic policies decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.fleet.controller.counts import LATEST, first_of, mixing, shadow_of
from penstock.fleet.controller.view import View
from penstock.fleet.routes import Arm, Contextual, Endpoint, Upstream


@dataclass(frozen=True, slots=True)
class Choice:
    """What the traffic policy of a deployment says beside its weights."""

    logged: bool = False
    contextual: Contextual | None = None


def endpoint(view: View, choice: Choice) -> Endpoint | None:
    """What routers know of one deployment. None: nobody is to reach it."""
    record = view.record
    if record.state.deleting:
        return None
    wish, experiment = record.state.wish, record.state.experiment
    shares = weights(view)
    arms = [Arm(number, shares.get(number, 0.0), _upstreams(view, number)) for number in arm_numbers(view)]
    shadow = wish.traffic.shadow if shadow_of(record) is not None else None
    if shadow is not None and view.ready(shadow.revision):
        arms.append(Arm(shadow.revision, 0.0, _upstreams(view, shadow.revision)))
    else:
        shadow = None
    first = first_of(record)
    served = any(arm.upstreams and arm.weight > 0 for arm in arms)
    return Endpoint(
        name=wish.name,
        arms=tuple(arms),
        stable=experiment.stable if experiment else record.revision,
        experiment=experiment.id if experiment else 0,
        logged=choice.logged,
        waking=not served and (experiment is not None or first is not None),
        matches=wish.routes,
        requests=wish.requests,
        sticky=wish.traffic.sticky,
        shadow=shadow,
        contextual=choice.contextual,
    )


def arm_numbers(view: View) -> tuple[int, ...]:
    experiment = view.record.state.experiment
    return experiment.arms if experiment else ()


def weights(view: View) -> dict[int, float]:
    """The arms' shares, which sum to 1: those of the experiment, or the numbers of replicas while a rollout mixes.

    An arm without a ready replica has 0, and the others have its share; all is the stable one's where none is ready.
    """
    record = view.record
    experiment = record.state.experiment
    if experiment is None:
        return {}
    ready = {arm: len(view.ready(arm)) for arm in experiment.arms}
    if record.state.wish.traffic.policy == LATEST or mixing(record):
        wished: Mapping[int, float] = ready
    else:
        wished = experiment.weights or {experiment.stable: 1.0}
    shares = {arm: float(wished.get(arm, 0.0)) if ready[arm] else 0.0 for arm in experiment.arms}
    total = sum(shares.values())
    if total > 0:
        return {arm: share / total for arm, share in shares.items()}
    # Nobody who has a share is ready. Whoever is ready serves before requests wait.
    alone = next((arm for arm in (experiment.stable, *experiment.arms) if ready[arm]), experiment.stable)
    return {arm: float(arm == alone) for arm in experiment.arms}


def _upstreams(view: View, number: int) -> tuple[Upstream, ...]:
    return tuple(
        Upstream(one.id, one.http, one.grpc) for one in sorted(view.ready(number), key=lambda one: one.id) if one.http
    )
