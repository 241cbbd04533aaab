"""ε-greedy, softmax, Thompson and UCB: what they make of known figures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from penstock.core.errors import InvalidInput
from penstock.fleet.state import ArmStatistics
from penstock.fleet.traffic import Arm, Decision, Observation, Policy
from penstock.fleet.traffic.epsilon_greedy import plug as epsilon_greedy
from penstock.fleet.traffic.latest import plug as latest
from penstock.fleet.traffic.softmax import plug as softmax
from penstock.fleet.traffic.thompson import plug as thompson
from penstock.fleet.traffic.ucb import plug as ucb


def rewarded(count: int, total: float, squares: float | None = None, errors: int = 0) -> ArmStatistics:
    return ArmStatistics(
        requests=count + errors,
        errors=errors,
        rewards=count,
        reward_sum=total,
        reward_squares=total if squares is None else squares,
    )


def decide(
    policy: Policy, options: dict[str, Any], *arms: ArmStatistics, ready: tuple[int, ...] | None = None
) -> Decision:
    seen = [
        Arm(revision, ready is None or revision in ready, 0.0, known) for revision, known in enumerate(arms, start=1)
    ]
    return policy.decide(policy.options(options), Observation(100.0, 0.0, seen, 1))


def test_latest_is_the_newest_that_is_ready() -> None:
    three = (ArmStatistics(),) * 3
    assert decide(latest, {}, *three).weights == {1: 0, 2: 0, 3: 1}
    waiting = decide(latest, {}, *three, ready=(1, 2))
    assert waiting.weights == {1: 0, 2: 1, 3: 0}
    assert "revision 3 is not ready" in waiting.explanation
    assert decide(latest, {}, *three, ready=()).weights == {1: 1, 2: 0, 3: 0}


def test_epsilon_greedy_explores_all_arms_or_as_seldon_the_others_only() -> None:
    arms = rewarded(100, 50), rewarded(100, 60), rewarded(100, 40)
    assert decide(epsilon_greedy, {"epsilon": 0.3}, *arms).weights == pytest.approx({1: 0.1, 2: 0.8, 3: 0.1})
    others = decide(epsilon_greedy, {"epsilon": 0.3, "explore": "others"}, *arms)
    assert others.weights == pytest.approx({1: 0.15, 2: 0.7, 3: 0.15})


def test_epsilon_greedy_keeps_fractions_of_rewards() -> None:
    """A reward of 0.4 is 0.4 of a success: cut to whole ones, as Seldon Core does, both arms would have none."""
    better, worse = rewarded(1, 0.45, 0.2025), rewarded(1, 0.4, 0.16)
    assert decide(epsilon_greedy, {"epsilon": 0}, worse, better).weights == {1: 0.0, 2: 1.0}


def test_epsilon_greedy_shares_between_equals_and_decays() -> None:
    equal = decide(epsilon_greedy, {"epsilon": 0.1}, rewarded(10, 5), rewarded(20, 10), rewarded(10, 1))
    assert equal.weights == pytest.approx({1: 0.45 + 0.1 / 3, 2: 0.45 + 0.1 / 3, 3: 0.1 / 3})
    options = {"epsilon": 0.2, "decay_rewards": 100, "epsilon_minimum": 0.02}
    assert decide(epsilon_greedy, options, rewarded(50, 5), rewarded(50, 40)).weights[1] == pytest.approx(0.05)
    assert decide(epsilon_greedy, options, rewarded(5000, 50), rewarded(5000, 4000)).weights[1] == pytest.approx(0.01)


@pytest.mark.parametrize("policy", [epsilon_greedy, softmax, thompson, ucb], ids=lambda policy: policy.name)
def test_an_arm_without_rewards_gets_an_equal_share_and_no_more(policy: Policy) -> None:
    """Its feedback may be broken: all requests to it for ever would be the end of the others."""
    weights = decide(policy, {}, rewarded(1000, 10), rewarded(1000, 12), ArmStatistics(requests=900)).weights
    assert weights[3] == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("policy", [epsilon_greedy, softmax, thompson, ucb], ids=lambda policy: policy.name)
def test_an_arm_that_fails_loses_although_no_feedback_comes_for_failed_requests(policy: Policy) -> None:
    failing, sound = rewarded(200, 190, errors=1800), rewarded(2000, 1600)
    assert decide(policy, {}, sound, failing).weights[2] < 0.1
    assert decide(policy, {"error_reward": None}, sound, failing).weights[2] > 0.9
    only_errors = decide(policy, {}, sound, ArmStatistics(requests=500, errors=500))
    assert only_errors.weights[2] < 0.1


@pytest.mark.parametrize("policy", [epsilon_greedy, softmax, thompson, ucb], ids=lambda policy: policy.name)
def test_the_scale_of_rewards_does_not_matter_once_it_is_told(policy: Policy) -> None:
    plain = decide(policy, {}, rewarded(100, 40), rewarded(100, 55))
    options = {"reward_low": -5, "reward_high": 15, "error_reward": -5}

    def scaled(count: int, ones: int) -> ArmStatistics:
        return rewarded(count, 15.0 * ones - 5.0 * (count - ones), 225.0 * ones + 25.0 * (count - ones))

    assert decide(policy, options, scaled(100, 40), scaled(100, 55)).weights == pytest.approx(plain.weights)


@pytest.mark.parametrize("policy", [epsilon_greedy, softmax, thompson, ucb], ids=lambda policy: policy.name)
def test_rewards_beyond_their_bounds_raise_an_alarm(policy: Policy) -> None:
    seen = decide(policy, {}, rewarded(100, 40), rewarded(10, 60, 700))
    assert seen.alarms == (
        "rewards of revision 2 are not all between 0 and 1 (mean 6 of 10): set reward_low and reward_high",
    )
    assert not decide(policy, {}, rewarded(100, 40), rewarded(10, 6)).alarms


def test_softmax_is_what_it_says() -> None:
    weights = decide(softmax, {"temperature": 0.1, "floor": 0}, rewarded(100, 50), rewarded(100, 60)).weights
    assert weights[2] / weights[1] == pytest.approx(math.e)


def test_thompson_with_one_reward_each_is_the_exact_chance() -> None:
    """P(Beta(2, 1) > Beta(1, 2)) = 5/6."""
    assert decide(thompson, {"floor": 0}, rewarded(1, 1), rewarded(1, 0)).weights[1] == pytest.approx(5 / 6, abs=1e-4)


def test_a_floor_keeps_every_ready_arm_in_the_draw() -> None:
    for policy in (thompson, ucb, softmax):
        arms = rewarded(10_000, 100), rewarded(10_000, 9000), ArmStatistics()
        weights = decide(policy, {"floor": 0.05}, *arms, ready=(1, 2)).weights
        assert weights == pytest.approx({1: 0.05, 2: 0.95, 3: 0}, abs=1e-3)
        assert decide(policy, {"floor": 0.9}, *arms[:2]).weights == pytest.approx({1: 0.5, 2: 0.5})


def test_gaussian_thompson_takes_any_numbers_and_learns_their_spread() -> None:
    noisy, exact = rewarded(100, 10_000, 100 * (100**2 + 50**2)), rewarded(100, 10_400, 100 * (104**2 + 50**2))
    close = decide(thompson, {"model": "gaussian"}, noisy, exact).weights
    assert 0.6 < close[2] < 0.8  # a difference of 4 with a standard error of 7
    noisy, exact = rewarded(100, 10_000, 100 * (100**2 + 1)), rewarded(100, 10_400, 100 * (104**2 + 1))
    assert decide(thompson, {"model": "gaussian"}, noisy, exact).weights[2] == pytest.approx(0.99)
    same = rewarded(100, 300, 900)
    assert decide(thompson, {"model": "gaussian"}, same, same).weights == pytest.approx({1: 0.5, 2: 0.5})
    with pytest.raises(InvalidInput, match="no effect with model gaussian"):
        thompson.options({"model": "gaussian", "reward_high": 5})


def test_ucb_spreads_pulls_until_the_indices_are_level() -> None:
    options = {"floor": 0, "ahead": 0.5}
    arms = {1: (1000, 0.50), 2: (200, 0.48), 3: (100, 0.30)}
    weights = decide(ucb, options, *(rewarded(n, n * mean) for n, mean in arms.values())).weights
    total = sum(n for n, _ in arms.values())
    after = {revision: n + weights[revision] * 0.5 * total for revision, (n, _) in arms.items()}
    level = {revision: mean + math.sqrt(2 * math.log(total) / after[revision]) for revision, (_, mean) in arms.items()}
    pulled = [revision for revision in arms if weights[revision] > 0]
    assert 2 in pulled
    assert max(level[one] for one in pulled) == pytest.approx(min(level[one] for one in pulled), abs=1e-3)
    assert all(level[one] <= level[2] + 1e-3 for one in arms)


def test_ucb_with_little_ahead_takes_the_largest_index() -> None:
    """With pulls of 10 per arm ahead, it is UCB1's own choice."""
    arms = (1000, 0.50), (100, 0.45), (1000, 0.40)
    index = [mean + math.sqrt(2 * math.log(2100) / n) for n, mean in arms]
    weights = decide(ucb, {"floor": 0, "ahead": 0.001}, *(rewarded(n, n * mean) for n, mean in arms)).weights
    assert weights[1 + index.index(max(index))] > 0.99


def test_explanations_state_the_figures() -> None:
    seen = decide(thompson, {}, rewarded(11_004, 5502), rewarded(1220, 800, errors=3))
    assert "revision 1: 0.5 of 11,004 rewards" in seen.explanation
    assert "revision 2: 0.6557 of 1,220 rewards, 3 failed, gets 99 %" in seen.explanation
