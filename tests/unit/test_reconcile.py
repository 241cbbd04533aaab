"""The plan of one deployment, asked directly: pure, deterministic, in the right order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.fleet import spec
from penstock.fleet.controller.reconcile import LONGEST_BACKOFF_S, earliest_start, plan
from penstock.fleet.controller.routing import Choice, endpoint
from penstock.fleet.controller.view import Begin, Forget, Prepare, Remove, SetPhase, Start, Stop, Switch, Trouble, View
from penstock.fleet.state import DeploymentState, Experiment, Phase, Replica, ReplicaState, Revision
from penstock.fleet.store.records import Record, policy_text

NOW = 1000.0
STARTING, READY, DRAINING, FAILED = (
    ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.FAILED,
)  # fmt: skip


def view(
    *phases: Phase, size: int = 1, arms: tuple[int, ...] = (1,), replicas: str = "", prepared: bool = True,
    **document: object,
) -> View:  # fmt: skip
    """Revisions 1, 2 … in these phases, the last one wished. `replicas` are like "1r 1s 2f": revision and state."""
    wishes = [spec.read("m", {"model": f"/{number}", **document}) for number in range(1, len(phases) + 1)]
    revisions = tuple(
        Revision("m", number, wish.run, NOW - 50, phase, "", NOW - 5)
        for number, (wish, phase) in enumerate(zip(wishes, phases, strict=True), 1)
    )
    experiment = Experiment(7, arms, arms[0], NOW - 50) if arms else None
    state = DeploymentState(wishes[-1], 1, revisions, experiment)
    states = {"s": STARTING, "r": READY, "d": DRAINING, "f": FAILED}
    running = tuple(
        Replica(
            f"m-{text[0]}-{place}",
            "m",
            int(text[0]),
            states[text[1]],
            f"127.0.0.1:{place}",
            "",
            NOW - 9 + place,
            NOW - 8 + place,
        )
        for place, text in enumerate(replicas.split())
    )
    record = Record(state, len(phases), size=size, policy=policy_text(wishes[-1]))
    return View(record, running, dict.fromkeys(range(1, 9), NOW - 5) if prepared else {})


def test_what_is_as_wished_needs_nothing() -> None:
    assert plan(view(Phase.READY, replicas="1r 1r", size=2), NOW) == []


def test_plan_is_the_same_when_asked_again() -> None:
    seen = view(Phase.READY, Phase.STARTING, replicas="1r 1r 2s", size=2)
    assert plan(seen, NOW) == plan(seen, NOW)


def test_nothing_starts_before_it_is_prepared() -> None:
    seen = view(Phase.PENDING, arms=(), prepared=False)
    assert plan(seen, NOW) == [Prepare(1, seen.record.state.revisions[0].run)]


def test_first_revision_begins_the_first_experiment() -> None:
    assert plan(view(Phase.STARTING, arms=(), replicas="1r"), NOW) == [
        SetPhase(1, Phase.READY), Begin((1,), 1, "the first revision is ready"),
    ]  # fmt: skip


def test_surge_comes_before_anything_old_goes() -> None:
    actions = plan(view(Phase.READY, Phase.STARTING, replicas="1r 1r", size=2), NOW)
    assert [type(one) for one in actions] == [Start]


def test_old_one_goes_for_each_new_one_that_is_ready() -> None:
    seen = view(Phase.READY, Phase.STARTING, arms=(1, 2), replicas="1r 1r 2r", size=2)
    actions = plan(seen, NOW)
    assert [one.replica for one in actions if isinstance(one, Stop)] == ["m-1-1"]  # the younger one


def test_rollout_ends_in_one_switch() -> None:
    seen = view(Phase.READY, Phase.STARTING, arms=(1, 2), replicas="1r 2r 2r", size=2)
    assert plan(seen, NOW) == [Switch(2, "2 of its replicas are ready")]


def test_drained_replica_is_neither_counted_nor_stopped_again() -> None:
    actions = plan(view(Phase.READY, replicas="1d"), NOW)
    assert [type(one) for one in actions] == [Start]


def test_failed_replica_is_forgotten_and_replaced() -> None:
    actions = plan(view(Phase.READY, replicas="1f"), NOW)
    assert [type(one) for one in actions] == [Forget, Start]


@pytest.mark.parametrize(("count", "wait_s"), [(1, 0.0), (2, 1.0), (3, 2.0), (5, 8.0), (60, LONGEST_BACKOFF_S)])
def test_backoff_doubles_up_to_its_longest(count: int, wait_s: float) -> None:
    seen = replace(view(Phase.READY), troubles={1: Trouble(count, NOW, "it ended")})
    assert earliest_start(seen, 1) == pytest.approx(NOW + wait_s if wait_s else 0.0)
    started = any(isinstance(one, Start) for one in plan(seen, NOW + wait_s))
    assert started
    if wait_s:
        assert not any(isinstance(one, Start) for one in plan(seen, NOW + wait_s - 0.01))


def test_deleted_deployment_goes_when_nothing_of_it_runs() -> None:
    seen = view(Phase.READY, replicas="1r 1d")
    deleting = replace(seen, record=replace(seen.record, state=replace(seen.record.state, deleting=True)))
    assert [one.replica for one in plan(deleting, NOW) if isinstance(one, Stop)] == ["m-1-0"]
    assert endpoint(deleting, Choice()) is None
    assert plan(replace(deleting, replicas=()), NOW) == [Remove()]


def test_scaled_down_arm_waits_for_the_arm_that_grows() -> None:
    seen = view(Phase.READY, Phase.READY, arms=(1, 2), replicas="1r 1r 2r 2s", size=3, traffic="split")
    experiment = replace(seen.record.state.experiment, weights={1: 0.1, 2: 0.9})  # type: ignore[type-var]
    seen = replace(seen, record=replace(seen.record, state=replace(seen.record.state, experiment=experiment)))
    assert not any(isinstance(one, Stop) for one in plan(seen, NOW))
    grown = replace(
        seen,
        replicas=(
            *seen.replicas[:3],
            replace(seen.replicas[3], state=READY),
            replace(seen.replicas[3], id="x", state=READY),
        ),
    )
    assert [one.replica for one in plan(grown, NOW) if isinstance(one, Stop)] == ["m-1-1"]
