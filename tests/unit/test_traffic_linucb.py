"""LinUCB: choices by context, their propensities, their cost, and what it learns."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import InvalidInput
from penstock.fleet.routes import Contextual
from penstock.fleet.state import ArmStatistics
from penstock.fleet.traffic import Arm, Observation
from penstock.fleet.traffic.linucb import plug


class Site:
    """Arms whose rewards are linear in the context, with noise; every `batch` requests there is a new decision."""

    def __init__(self, coefficients: np.ndarray[Any, Any], seed: int) -> None:
        self.coefficients, self.rng = coefficients, np.random.default_rng(seed)
        arms, d = coefficients.shape
        self.gram, self.moment = np.zeros((arms, d, d)), np.zeros((arms, d))
        self.rewards, self.regret, self.fixed = np.zeros(arms), 0.0, np.zeros(arms)

    def run(self, options: Any, requests: int, batch: int = 100) -> list[float]:
        """The regret after each request, of the choices by context alone: what ε costs is left out."""
        course, d = [], self.coefficients.shape[1]
        for at in range(requests):
            if at % batch == 0:
                parameters = self.decide(options)
            context = self.rng.normal(0, 1, d) / math.sqrt(d)
            means = 0.5 + 0.3 * self.coefficients @ context
            chosen, propensity = plug.choose(parameters, context.tolist(), float(self.rng.random()))
            reward = means[chosen] + self.rng.normal(0, 0.1)
            self.gram[chosen] += np.outer(context, context)
            self.moment[chosen] += (reward - 0.5) * context
            self.rewards[chosen] += 1
            if propensity > 0.5:
                self.regret += float(means.max() - means[chosen])
            self.fixed += means.max() - means
            course.append(self.regret)
        return course

    def decide(self, options: Any) -> Contextual:
        arms = [
            Arm(
                revision,
                True,
                0.0,
                ArmStatistics(
                    rewards=int(self.rewards[at]),
                    gram=tuple(self.gram[at].ravel().tolist()),
                    moment=tuple(self.moment[at].tolist()),
                ),
            )
            for at, revision in enumerate(range(1, len(self.coefficients) + 1))
        ]
        contextual = plug.decide(options, Observation(1.0, 0.0, arms, 1)).contextual
        assert contextual is not None
        return contextual


def test_it_beats_the_best_fixed_arm_and_its_regret_grows_like_a_root(figure) -> None:
    rng = np.random.default_rng(0)
    coefficients = rng.normal(0, 1, (4, 8))
    options = plug.options({"dimension": 8, "epsilon": 1e-4, "alpha": 0.3})
    site = Site(coefficients, seed=1)
    course = site.run(options, 20_000)
    figure("P9f", "regret of LinUCB, 4 arms, 8 numbers of context, 20,000 requests", course[-1], "rewards",
           goal=f"≤ {site.fixed.min() / 10:.0f}, a tenth of the best fixed arm's")  # fmt: skip
    assert course[-1] <= site.fixed.min() / 10
    # √T: four times the requests, at most twice the regret (a linear one would be four times)
    assert course[-1] <= 2.2 * course[len(course) // 4]
    # Chu et al. 2011: O(√(T d ln³(K T ln T / δ))); the constant here is 1 without the logarithms
    assert course[-1] <= math.sqrt(20_000 * 8)


def test_a_choice_takes_less_than_fifty_microseconds(figure) -> None:
    site = Site(np.random.default_rng(0).normal(0, 1, (4, 8)), seed=1)
    options = plug.options({"dimension": 8})
    site.run(options, 500)
    parameters, context, took = site.decide(options), [0.1 * at for at in range(8)], []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            plug.choose(parameters, context, 0.3)
        took.append((time.perf_counter() - began) / 100)
    figure("P9f", "LinUCB chooses among 4 arms by 8 numbers in", 1e6 * min(took), "µs", goal="< 50 µs")
    assert min(took) < 50e-6


def test_the_index_is_that_of_the_paper() -> None:
    rng, d = np.random.default_rng(3), 5
    options = plug.options({"dimension": d, "alpha": 0.7, "ridge": 2.0, "epsilon": 0.1})
    arms, grams, moments = [], [], []
    for revision in (4, 5, 9):
        contexts, rewards = rng.normal(size=(30, d)), rng.random(30)
        grams.append(contexts.T @ contexts)
        moments.append(contexts.T @ rewards)
        known = ArmStatistics(gram=tuple(grams[-1].ravel().tolist()), moment=tuple(moments[-1].tolist()))
        arms.append(Arm(revision, True, 0.0, known))
    parameters = plug.decide(options, Observation(0.0, 0.0, arms, 4)).contextual
    assert parameters is not None
    raw = Contextual(
        "linucb", d, dict(parameters.options),
        gram=tuple(tuple(gram.ravel().tolist()) for gram in grams), moment=tuple(tuple(m.tolist()) for m in moments),
    )  # fmt: skip
    for _ in range(50):
        x = rng.normal(size=d)
        index = []
        for gram, moment in zip(grams, moments, strict=True):
            a = gram + 2.0 * np.eye(d)
            index.append(x @ np.linalg.solve(a, moment) + 0.7 * math.sqrt(x @ np.linalg.solve(a, x)))
        chosen, propensity = plug.choose(parameters, x.tolist(), 0.2)
        assert chosen == int(np.argmax(index))
        assert propensity == pytest.approx(0.9 + 0.1 / 3)
        assert plug.choose(raw, x.tolist(), 0.2) == (chosen, propensity)  # a table without inverses will do


def test_the_dimension_has_to_be_told() -> None:
    with pytest.raises(InvalidInput, match="needs dimension"):
        plug.options({})


def test_figures_of_another_dimension_are_left_out_and_told() -> None:
    options = plug.options({"dimension": 2})
    arms = [Arm(1, True, 0.0, ArmStatistics(gram=(1.0,) * 9, moment=(1.0,) * 3)), Arm(2, True, 0.0, ArmStatistics())]
    decision = plug.decide(options, Observation(0.0, 0.0, arms, 1))
    assert "another length than 2" in decision.alarms[0]
    assert decision.contextual is not None
    assert decision.contextual.coefficients == ((0.0, 0.0), (0.0, 0.0))


def test_one_huge_context_cannot_outweigh_all_others() -> None:
    parameters = plug.decide(
        plug.options({"dimension": 2, "context_limit": 10}),
        Observation(0.0, 0.0, [Arm(1, True, 0.0, ArmStatistics())], 1),
    ).contextual
    assert parameters is not None
    assert plug.choose(parameters, [10.0, -10.0], 0.0)[0] == 0
    with pytest.raises(InvalidInput, match=r"number 1 of the context is 10\.5; allowed is -10 to 10"):
        plug.choose(parameters, [0.0, 10.5], 0.0)
