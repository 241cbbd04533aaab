"""What every traffic policy owes, by the numbers of `fleet.traffic`. A new file in the folder is picked up here."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import InvalidInput
from penstock.fleet import policy_options, traffic
from penstock.fleet.state import LATENCY_BOUNDS_S, ArmStatistics
from penstock.fleet.traffic import Arm, ContextualPolicy, Observation, Policy

NAMES = sorted(module.name for module in pkgutil.iter_modules(traffic.__path__))
CONTEXT = 3
NEEDED = {"linucb": {"dimension": CONTEXT}}  # options without which a policy cannot be
OTHERS: dict[str, list[dict[str, object]]] = {  # more ways to run
    "canary": [
        {"steps": [0.3, 0.6], "step_s": 0, "step_requests": 1, "promotion": "steps"},
        {"reward_tolerance": 0.05, "min_reward": 0.1, "max_error_rate": 0.2, "max_latency_s": "250ms", "step_s": "1s"},
    ],
    "split": [
        {"weights": {"1": 90, "newest": 10}},
        {"decide_by": "reward"},
        {"decide_by": "error_rate", "settle_s": 0},
    ],
    "epsilon_greedy": [{"explore": "others", "decay_rewards": 100}, {"epsilon": 0}],
    "thompson": [{"model": "gaussian"}, {"floor": 0, "error_reward": None}],
    "ucb": [{"floor": 0}],
}
CASES = [(name, options) for name in NAMES for options in ({}, *OTHERS.get(name, []))]


def plug(name: str) -> Policy:
    return importlib.import_module(f"penstock.fleet.traffic.{name}").plug


def options_of(name: str, given: dict[str, object]) -> Any:
    return plug(name).options({**NEEDED.get(name, {}), **given})


@st.composite
def statistics(draw: st.DrawFn) -> ArmStatistics:
    """Counts that fit each other; rewards are fractions in [0, 1]."""
    requests = draw(st.integers(0, 5000) | st.integers(0, 10**8))
    errors = draw(st.integers(0, requests))
    latency = [0] * (len(LATENCY_BOUNDS_S) + 1)
    latency[draw(st.integers(0, len(LATENCY_BOUNDS_S)))] = requests - errors
    rewards = draw(st.integers(0, requests - errors))
    mean = draw(st.floats(0, 1))
    gram = [0.0] * CONTEXT**2
    for at in range(CONTEXT):
        gram[at * CONTEXT + at] = float(rewards)
    return ArmStatistics(
        requests=requests,
        errors=errors,
        latency=draw(st.sampled_from([tuple(latency), ()])),
        rewards=rewards,
        reward_sum=rewards * mean,
        reward_squares=rewards * mean * draw(st.floats(mean, 1)),
        gram=draw(st.sampled_from([tuple(gram), ()])),
        moment=(rewards * mean,) * CONTEXT,
    )


@st.composite
def observations(draw: st.DrawFn) -> list[Observation]:
    """Some looks at the same arms, one after the other; counts grow."""
    revisions = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True))
    stable = draw(st.sampled_from(revisions))
    known = {revision: draw(statistics()) for revision in revisions}
    looks, now = [], 1e9
    for _ in range(draw(st.integers(1, 4))):
        now += draw(st.floats(0, 1000))
        arms = []
        for revision in revisions:
            one = known[revision]
            more = draw(st.integers(0, 1000))
            latency = (one.latency[0] + more, *one.latency[1:]) if one.latency else ()
            known[revision] = dataclasses.replace(one, requests=one.requests + more, latency=latency)
            arms.append(Arm(revision, draw(st.booleans()), 1e9, known[revision]))
        looks.append(Observation(now, 1e9, tuple(arms), stable))
    return looks


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_plugs_name_is_the_files_name(name: str) -> None:
    assert plug(name).name == name
    assert isinstance(plug(name).logged, bool)


def test_1_defaults_are_filled_and_unknown_keys_are_refused_with_the_nearest(name: str) -> None:
    options = options_of(name, {})
    fields = [field.name for field in dataclasses.fields(options)]
    with pytest.raises(InvalidInput, match=r"there is no option 'nonsense'"):
        options_of(name, {"nonsense": 1})
    if fields:
        with pytest.raises(InvalidInput, match=f"did you mean '{fields[0]}'"):
            options_of(name, {fields[0] + "x": 1})


def test_1_wrong_values_are_refused_naming_the_option(name: str) -> None:
    options = options_of(name, {})
    for field in dataclasses.fields(options):
        with pytest.raises(InvalidInput, match=field.name):
            options_of(name, {field.name: ["neither", "this", "nor", {"that": 1}]})
        maximum = field.metadata["maximum"]
        if maximum is not None:
            with pytest.raises(InvalidInput, match=field.name):
                options_of(name, {field.name: maximum + 1})
        minimum = field.metadata["minimum"]
        if minimum is not None:
            with pytest.raises(InvalidInput, match=field.name):
                options_of(name, {field.name: minimum - 1})


def test_1_options_are_described(name: str) -> None:
    for field in dataclasses.fields(options_of(name, {})):
        assert field.metadata["doc"].endswith((".", "`"))
    assert policy_options.table(type(options_of(name, {})))


@pytest.mark.parametrize(("name", "given_options"), CASES, ids=[f"{name}-{options}" for name, options in CASES])
def test_2_3_4_decisions_are_weights_that_follow_from_what_was_seen(name: str, given_options: dict[str, Any]) -> None:
    policy, options = plug(name), options_of(name, given_options)

    @settings(max_examples=25, deadline=None)
    @given(observations())
    def check(looks: list[Observation]) -> None:
        memory: dict[str, object] = {}
        for look in looks:
            observed = dataclasses.replace(look, memory=memory)
            decision = policy.decide(options, observed)
            # 2
            assert set(decision.weights) == {arm.revision for arm in look.arms}
            assert all(0 <= weight <= 1 for weight in decision.weights.values())
            assert sum(decision.weights.values()) == pytest.approx(1, abs=1e-9)
            for arm in look.arms:
                assert (
                    arm.ready
                    or arm.revision == look.stable
                    or decision.weights[arm.revision] == 0
                    or not any(other.ready or other.revision == look.stable for other in look.arms)
                )
            # 3
            assert policy.decide(options, observed) == decision
            memory = json.loads(json.dumps(decision.memory, allow_nan=False))
            again = policy.decide(options, dataclasses.replace(look, memory=json.loads(json.dumps(memory))))
            assert again.weights.keys() == decision.weights.keys()
            # 4
            assert decision.explanation
            assert decision.verdict is None or (
                decision.verdict.reason and decision.verdict.revision in decision.weights
            )

    check()


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(plug(name), ContextualPolicy)])
def test_5_a_contextual_policy_chooses_with_the_propensity_that_it_says(name: str) -> None:
    policy = plug(name)
    assert isinstance(policy, ContextualPolicy)
    known = ArmStatistics(
        requests=50,
        rewards=50,
        reward_sum=30,
        reward_squares=30,
        gram=(9.0, 0, 0, 0, 9, 0, 0, 0, 9),
        moment=(3.0, 5, 1),
    )
    arms = [Arm(1, True, 0, known), Arm(2, False, 0, ArmStatistics()), Arm(3, True, 0, ArmStatistics())]
    parameters = policy.decide(options_of(name, {}), Observation(10, 0, arms, 1)).contextual  # type: ignore[attr-defined]
    assert parameters is not None
    assert parameters.policy == name
    for context in ([0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [1000.0, 1000.0, -1000.0]):
        said, seen, number = {}, dict.fromkeys(range(3), 0), 4000
        for draw in range(number):
            arm, propensity = policy.choose(parameters, context, draw / number)
            assert said.setdefault(arm, propensity) == propensity
            seen[arm] += 1
        assert sum(said.values()) == pytest.approx(1)
        assert seen[1] == 0  # it is not ready
        for arm, propensity in said.items():
            assert propensity > 0
            assert seen[arm] / number == pytest.approx(propensity, abs=2 / number)
    for wrong in ([1.0], [1.0, 2.0, float("nan")], [1.0, 2.0, float("inf")], [1.0, 2.0, 3.0, 4.0], [1e300, 0.0, 0.0]):
        with pytest.raises(InvalidInput, match="context"):
            policy.choose(parameters, wrong, 0.5)
