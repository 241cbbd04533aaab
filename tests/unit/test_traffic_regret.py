"""Regret on arms with known means, 20,000 requests and a new decision every 1,000, beside the bounds of theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated_arms import coin, normal, regret, shares

from penstock.fleet.traffic import Policy
from penstock.fleet.traffic.epsilon_greedy import plug as epsilon_greedy
from penstock.fleet.traffic.softmax import plug as softmax
from penstock.fleet.traffic.split import plug as split
from penstock.fleet.traffic.thompson import plug as thompson
from penstock.fleet.traffic.ucb import plug as ucb

REQUESTS, RUNS = 20_000, 20
TWO, FIVE = (0.5, 0.6), (0.30, 0.32, 0.35, 0.40, 0.45)


def mean_regret(policy: Policy, options: dict[str, object], means: tuple[float, ...], kind=coin) -> float:
    made = policy.options(options)
    return float(np.mean([regret(policy, made, means, [kind(mean) for mean in means], seed) for seed in range(RUNS)]))


def ucb1_bound(means: tuple[float, ...]) -> float:
    """Auer, Cesa-Bianchi & Fischer 2002, Theorem 1."""
    gaps = [max(means) - mean for mean in means if mean < max(means)]
    return sum(8 * math.log(REQUESTS) / gap for gap in gaps) + (1 + math.pi**2 / 3) * sum(gaps)


def thompson_bound(means: tuple[float, ...]) -> float:
    """Agrawal & Goyal 2012, Theorem 1 for two arms; 2013, Theorem 1 with ε = 1 for more, with constant 1 in O(N/ε²)."""
    gaps = [max(means) - mean for mean in means if mean < max(means)]
    if len(means) == 2:
        (gap,) = gaps
        return 40 * math.log(REQUESTS) / gap + 48 / gap**3 + 18 * gap
    best = max(means)

    def divergence(p: float) -> float:
        return p * math.log(p / best) + (1 - p) * math.log((1 - p) / (1 - best))

    return 2 * sum((best - p) * math.log(REQUESTS) / divergence(p) for p in means if p < best) + len(means)


def batch_cost(means: tuple[float, ...]) -> float:
    """The first 1,000 requests are spread equally, whatever the policy: nothing is known yet."""
    return 1000 * float(np.mean([max(means) - mean for mean in means]))


@pytest.mark.parametrize("means", [TWO, FIVE], ids=["two arms", "five arms"])
@pytest.mark.parametrize("kind", [coin, shares], ids=["coins", "fractions"])
def test_ucb_stays_within_ucb1s_bound(means: tuple[float, ...], kind, figure) -> None:
    measured, bound = mean_regret(ucb, {"floor": 0}, means, kind), ucb1_bound(means)
    figure("P9f", f"regret of UCB, {len(means)} arms, {kind.__name__}, 20,000 requests in batches of 1,000", measured,
           "rewards", goal=f"≤ {bound:.0f} (Auer 2002)")  # fmt: skip
    assert measured <= bound
    assert measured <= 0.6 * mean_regret(split, {}, means, kind)  # the bound alone would let equal shares pass


@pytest.mark.parametrize("means", [TWO, FIVE], ids=["two arms", "five arms"])
@pytest.mark.parametrize("kind", [coin, shares], ids=["coins", "fractions"])
def test_thompson_stays_within_its_bound(means: tuple[float, ...], kind, figure) -> None:
    measured, bound = mean_regret(thompson, {"floor": 0}, means, kind), thompson_bound(means)
    figure("P9f", f"regret of Thompson, {len(means)} arms, {kind.__name__}, 20,000 requests in batches of 1,000",
           measured, "rewards", goal=f"≤ {bound:.0f} (Agrawal & Goyal)")  # fmt: skip
    assert measured <= bound + batch_cost(means)
    assert measured <= 0.3 * mean_regret(split, {}, means, kind)


def test_deciding_every_thousand_requests_costs_little(figure) -> None:
    """Beside Thompson sampling that draws for each request and learns after each."""
    means, each = FIVE, []
    for seed in range(RUNS // 2):
        rng, good, bad, missed = np.random.default_rng(seed), np.ones(5), np.ones(5), 0.0
        draws = rng.random(REQUESTS)
        for draw in draws:
            arm = int(rng.beta(good, bad).argmax())
            won = draw < means[arm]
            good[arm] += won
            bad[arm] += not won
            missed += max(means) - means[arm]
        each.append(missed)
    batched = mean_regret(thompson, {"floor": 0}, means)
    more = batched - float(np.mean(each))
    figure("P9f", "regret that Thompson's batches of 1,000 add to deciding per request", more, "rewards")
    assert more <= batch_cost(means) + 60


def test_gaussian_thompson_finds_the_best_of_unknown_variance(figure) -> None:
    means, deviations = (10.0, 10.5, 9.0), (3.0, 2.0, 6.0)
    made = thompson.options({"model": "gaussian", "floor": 0})
    rewards = [normal(mean, deviation) for mean, deviation in zip(means, deviations, strict=True)]
    measured = float(np.mean([regret(thompson, made, means, rewards, seed) for seed in range(RUNS)]))
    # Lai and Robbins' rate for normal arms of unknown variance: Σ 2Δ ln T / ln(1 + Δ²/σ²), Honda & Takemura 2014
    rate = sum(
        2 * (10.5 - mean) * math.log(REQUESTS) / math.log(1 + (10.5 - mean) ** 2 / deviation**2)
        for mean, deviation in zip(means, deviations, strict=True)
        if mean < 10.5
    )
    figure(
        "P9f",
        "regret of Gaussian Thompson, 3 arms, batches of 1,000",
        measured,
        "rewards",
        goal=f"≤ {2 * rate + batch_cost(means):.0f}",
    )
    assert measured <= 2 * rate + batch_cost(means)


def test_epsilon_greedy_and_softmax_pay_for_exploring_and_no_more() -> None:
    exploring = 0.1 * REQUESTS * float(np.mean([max(FIVE) - mean for mean in FIVE]))
    assert mean_regret(epsilon_greedy, {"epsilon": 0.1}, FIVE) <= exploring + 2 * batch_cost(FIVE)
    decayed = mean_regret(epsilon_greedy, {"epsilon": 0.5, "decay_rewards": 500}, FIVE)
    assert decayed <= 0.5 * mean_regret(epsilon_greedy, {"epsilon": 0.5}, FIVE)
    assert mean_regret(softmax, {"temperature": 0.02}, FIVE) <= 0.3 * mean_regret(split, {}, FIVE)
