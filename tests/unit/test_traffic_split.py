"""Fixed shares, the sample-ratio alarm, and A/B tests that end by evidence."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_arms import Behaviour, World, coin

from penstock.core.errors import InvalidInput
from penstock.fleet.state import ArmStatistics
from penstock.fleet.traffic import Arm, Decision, Observation
from penstock.fleet.traffic.split import plug


def world(stable: Behaviour, newest: Behaviour, seed: int = 0) -> World:
    return World({1: stable, 2: newest}, np.random.default_rng(seed))


def run(options: dict[str, object], arms: World, steps: int, requests: int = 200) -> Decision:
    """Until there is a verdict, or all steps were gone."""
    made = plug.options(options)
    for _ in range(steps):
        decision = arms.step(plug, made, requests)
        if decision.verdict is not None:
            break
    return decision


def shares(options: dict[str, object], ready: tuple[int, ...] = (1, 2, 3), stable: int = 1) -> dict[int, float]:
    arms = [Arm(revision, revision in ready, 0.0, ArmStatistics()) for revision in (1, 2, 3)]
    return dict(plug.decide(plug.options(options), Observation(0.0, 0.0, arms, stable)).weights)


def test_shares_are_in_any_unit_and_by_number_or_role() -> None:
    assert shares({"weights": {"1": 90, "2": 10}}) == pytest.approx({1: 0.9, 2: 0.1, 3: 0})
    assert shares({"weights": {1: 3, 3: 1}}) == pytest.approx({1: 0.75, 2: 0, 3: 0.25})  # as YAML reads it
    assert shares({"weights": {"stable": 0.8, "newest": 0.2}}) == pytest.approx({1: 0.8, 2: 0, 3: 0.2})
    assert shares({}) == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3})


def test_the_share_of_an_arm_that_is_not_ready_goes_to_the_others() -> None:
    assert shares({"weights": {"1": 60, "2": 20, "3": 20}}, ready=(1, 3)) == pytest.approx({1: 0.75, 2: 0, 3: 0.25})
    assert shares({"weights": {"2": 1}}, ready=(1, 3)) == {1: 1, 2: 0, 3: 0}
    assert shares({"weights": {"9": 1}}, ready=(1, 3)) == {1: 1, 2: 0, 3: 0}
    assert shares({"weights": {"2": 1}}, ready=()) == {1: 1, 2: 0, 3: 0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": {"newst": 1}}, "did you mean 'newest'"),
        ({"weights": {"1": -1}}, "at least 0"),
        ({"weights": {"1": 0, "2": 0}}, "all 0"),
        ({"decide_by": "rewards"}, "did you mean 'reward'"),
        ({"wieghts": {"1": 1}}, "did you mean 'weights'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        plug.options(given)


def test_requests_that_get_lost_raise_a_sample_ratio_alarm_and_decide_nothing() -> None:
    arms = world(Behaviour(), Behaviour())
    options = plug.options({"weights": {"1": 50, "2": 50}, "decide_by": "reward", "settle_s": 1})
    decision = arms.step(plug, options, 200)
    while not decision.alarms and arms.pulls[1] < 20_000:
        decision = arms.step(plug, options, 200)
        arms.answer(1, 70)  # as if as many of revision 2 were never counted
    assert "sample-ratio mismatch" in decision.alarms[0]
    assert "should be 50 %" in decision.alarms[0]
    assert arms.pulls[1] < 2000
    # What was counted stays wrong, also when the rest arrives as it should, and no difference is believed.
    arms.arms = {1: Behaviour(rewards=coin(0.5)), 2: Behaviour(rewards=coin(0.9))}
    for _ in range(20):
        decision = arms.step(plug, options, 1000)
    assert decision.alarms
    assert decision.verdict is None
    assert "better" in decision.explanation
    assert "nothing is decided" in decision.explanation


def test_right_shares_raise_no_alarm_and_a_change_of_shares_begins_anew() -> None:
    arms = world(Behaviour(), Behaviour())
    half, tenth = plug.options({"weights": {"1": 1, "2": 1}}), plug.options({"weights": {"1": 9, "2": 1}})
    for options in (half, tenth, half):
        for _ in range(40):
            decision = arms.step(plug, options, 500)
            assert not decision.alarms


def test_answers_that_were_under_way_when_shares_changed_are_no_mismatch() -> None:
    arms = world(Behaviour(), Behaviour())
    options = plug.options({"weights": {"1": 1, "2": 1}, "settle_s": 10})
    arms.step(plug, options, 100)
    arms.answer(2, 2000)  # slow ones, from when revision 2 had everything
    arms.now += 9
    assert not arms.step(plug, options, 100).alarms
    arms.now += 2
    for _ in range(20):
        assert not arms.step(plug, options, 500).alarms


def test_many_requests_of_one_user_count_once() -> None:
    """Users of 50 requests each: 100 users a side fluctuate by a tenth, which is no mismatch of users."""
    for per_user, alarms in ((1.0, True), (50.0, False)):
        arms = world(Behaviour(), Behaviour())
        options = plug.options({"settle_s": 0, "requests_per_user": per_user})
        for _ in range(2):
            arms.step(plug, options, 2)
        arms.answer(1, 50 * 112)
        arms.answer(2, 50 * 93)
        assert bool(plug.decide(options, arms.observed()).alarms) is alarms


@pytest.mark.parametrize(
    ("better", "options"),
    [
        (Behaviour(rewards=coin(0.62)), {"decide_by": "reward"}),
        (Behaviour(error_rate=0.01, rewards=coin(0.5)), {"decide_by": "error_rate"}),
    ],
    ids=["reward", "error rate"],
)
def test_the_better_arm_is_promoted_by_evidence(better: Behaviour, options: dict[str, object]) -> None:
    worse = Behaviour(error_rate=0.06, rewards=coin(0.5))
    won = run(options, world(worse, better), 200)
    assert won.verdict is not None
    assert (won.verdict.revision, won.verdict.promote) == (2, True)
    assert won.weights == {1: 0, 2: 1}
    assert "evidence" in won.verdict.reason
    assert "needed 20" in won.verdict.reason
    lost = run(options, world(better, worse), 200)
    assert lost.verdict is not None
    assert (lost.verdict.revision, lost.verdict.promote) == (2, False)
    assert lost.weights == {1: 1, 2: 0}


def test_equal_arms_are_rarely_decided_however_often_one_looks() -> None:
    decided = 0
    for seed in range(15):
        same = Behaviour(rewards=coin(0.3))
        decided += run({"decide_by": "reward"}, world(same, same, seed), 25, 150).verdict is not None
    assert decided <= 4  # of 15; 5 % for each side is what is allowed on average


def test_without_decide_by_nothing_ends() -> None:
    arms = world(Behaviour(rewards=coin(0.1)), Behaviour(rewards=coin(0.9)))
    assert run({}, arms, 50).verdict is None
