"""What another policy would have earned, from the log of one that ran: inverse propensity scores and doubly robust.

The log says which arm each decision took, how likely that was, and what came of it. A policy to be judged is given by
the probability of each arm for each decision. Its weight w = π(a|x) / p(a) makes rewards of the log stand for its own.

All estimates ask that every arm which the policy may take had a chance in the log, and that propensities are true; what
can be seen of that is told in `warnings`.

Sources: Horvitz & Thompson (1952) for IPS; Swaminathan & Joachims, The self-normalized estimator for counterfactual
learning (NeurIPS 2015) for SNIPS; Dudík, Langford & Li, Doubly robust policy evaluation and learning (ICML 2011) for
DR; Chernozhukov et al., Double/debiased machine learning (2018) for its cross-fitting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from penstock.core.errors import InvalidInput

Floats = NDArray[np.float64]

FOLDS = 3
_RIDGE = 1.0  # of standardised contexts: as much as one decision says
_MOST_DRAWN = 200_000_000  # numbers of a bootstrap; a larger log has fewer resamples
_FEWEST_RESAMPLES = 200
_FEW = 100.0  # effective decisions, below which a normal interval is a guess
_TINY = 0.01  # a propensity below which one decision weighs as much as a hundred


@dataclass(frozen=True, slots=True)
class Log:
    """Decisions with their rewards. `arms` (n) int64 are indices below `count`; `rewards` and `propensities` (n);
    `contexts` (n, d), or None where none were logged."""

    arms: NDArray[np.int64]
    rewards: Floats
    propensities: Floats
    count: int
    contexts: Floats | None = None

    def __post_init__(self) -> None:
        n = len(self.arms)
        if n < 2:
            raise InvalidInput(f"the log has {n} decisions with a reward; an estimate needs at least 2")
        if self.rewards.shape != (n,) or self.propensities.shape != (n,):
            raise InvalidInput("the log's arms, rewards and propensities are of one length")
        if self.contexts is not None and (self.contexts.ndim != 2 or len(self.contexts) != n):
            raise InvalidInput("the log's contexts are of one length, one per decision")
        if not np.all((self.propensities > 0) & (self.propensities <= 1)):
            raise InvalidInput("a propensity is above 0 and at most 1")
        if not np.all((self.arms >= 0) & (self.arms < self.count)):
            raise InvalidInput(f"an arm is a number from 0 to {self.count - 1}")
        if not np.all(np.isfinite(self.rewards)):
            raise InvalidInput("a reward is a finite number")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean reward per decision, with two intervals: of the normal approximation, and the bootstrap's percentiles."""

    value: float
    standard_error: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All estimates of one policy. `logged` is what the log itself earned, under the policy that ran."""

    decisions: int
    logged: Estimate
    ips: Estimate
    snips: Estimate
    dr: Estimate
    effective_sample_size: float  # (Σw)² / Σw²: as many decisions of the policy's own say as much (Kish 1965)
    largest_weight: float
    warnings: tuple[str, ...]


def evaluate(
    log: Log, policy: Floats, generator: np.random.Generator, *, confidence: float = 0.95, resamples: int = 1000,
    predictions: Floats | None = None,
) -> Evaluation:  # fmt: skip
    """The estimates of a policy. `policy` is (n, count), the probability of each arm at each decision; rows sum to 1.

    `predictions` (n, count) are expected rewards of a model that did not see the decision it predicts for; without
    them `predict_rewards` makes some.

    Raises:
        InvalidInput: `policy` is not such a table.
    """
    n = len(log.arms)
    if policy.shape != (n, log.count):
        raise InvalidInput(f"the policy's probabilities are {policy.shape}; the log has {(n, log.count)}")
    if not (np.all(policy >= 0) and np.allclose(policy.sum(axis=1), 1.0, atol=1e-6)):
        raise InvalidInput("a policy's probabilities are at least 0 and sum to 1 at each decision")
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence is {confidence:g}; it lies between 0 and 1")
    rows = np.arange(n)
    weights = policy[rows, log.arms] / log.propensities
    if predictions is None:
        predictions = predict_rewards(log, generator)
    parts = np.column_stack(
        [
            log.rewards,
            weights * log.rewards,
            weights,
            (policy * predictions).sum(axis=1) + weights * (log.rewards - predictions[rows, log.arms]),
        ]
    )
    means = parts.mean(axis=0)
    drawn = _bootstrap(parts, generator, resamples)
    ratios, ratio = _ratio(drawn[:, 1], drawn[:, 2]), float(_ratio(means[1:2], means[2:3])[0])
    # Of a ratio of means, by its linearisation.
    snips_error = math.sqrt(float(np.mean((weights * (log.rewards - ratio)) ** 2)) / n) / means[2] if means[2] else 0.0
    errors = parts.std(axis=0, ddof=1) / math.sqrt(n)
    squares = float(np.sum(weights**2))
    effective = float(np.sum(weights)) ** 2 / squares if squares else 0.0
    return Evaluation(
        decisions=n,
        logged=_estimate(means[0], errors[0], drawn[:, 0], confidence),
        ips=_estimate(means[1], errors[1], drawn[:, 1], confidence),
        snips=_estimate(ratio, snips_error, ratios, confidence),
        dr=_estimate(means[3], errors[3], drawn[:, 3], confidence),
        effective_sample_size=effective,
        largest_weight=float(weights.max()),
        warnings=tuple(_warnings(log, policy, weights, effective)),
    )


def predict_rewards(log: Log, generator: np.random.Generator, folds: int = FOLDS) -> Floats:
    """Expected rewards (n, count), each by a model of decisions in other folds: a ridge regression on the context per
    arm, or the arm's mean where there are no contexts. An arm of which the other folds have nothing has their mean."""
    n = len(log.arms)
    predicted = np.empty((n, log.count))
    fold = generator.permutation(n) % min(folds, n)
    inputs = np.ones((n, 1)) if log.contexts is None else np.column_stack([np.ones(n), _standardised(log.contexts)])
    penalty = _RIDGE * np.eye(inputs.shape[1])
    penalty[0, 0] = 1e-9  # the intercept is free
    for number in range(min(folds, n)):
        held, others = fold == number, fold != number
        center = log.rewards[others].mean()
        for arm in range(log.count):
            own = others & (log.arms == arm)
            x, y = inputs[own], log.rewards[own] - center
            fitted = np.linalg.solve(x.T @ x + penalty, x.T @ y) if len(y) else np.zeros(inputs.shape[1])
            predicted[held, arm] = center + inputs[held] @ fitted
    return predicted


def bernstein(values: Floats, low: float, high: float, confidence: float) -> tuple[float, float]:
    """An interval for the mean of values that lie between `low` and `high`, true for every number of them.

    For IPS, `high` is the largest weight that can be times the largest reward.
    Source: Maurer & Pontil, Empirical Bernstein bounds and sample variance penalization (COLT 2009), Theorem 4.
    """
    n, mean = len(values), float(values.mean())
    wide = math.log(4.0 / (1.0 - confidence))  # half of the risk for each side
    margin = math.sqrt(2.0 * float(values.var(ddof=1)) * wide / n) + 7.0 * (high - low) * wide / (3.0 * (n - 1))
    return mean - margin, mean + margin


def _standardised(contexts: Floats) -> Floats:
    spread = contexts.std(axis=0)
    scaled: Floats = (contexts - contexts.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled


def _bootstrap(parts: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """Column means of as many resamples of the rows, (resamples, columns)."""
    n = len(parts)
    resamples = max(_FEWEST_RESAMPLES, min(resamples, _MOST_DRAWN // n))
    drawn = np.empty((resamples, parts.shape[1]))
    for number in range(resamples):
        times = np.bincount(generator.integers(0, n, n), minlength=n)
        drawn[number] = times @ parts / n
    return drawn


def _ratio(upper: Floats, lower: Floats) -> Floats:
    ratio: Floats = np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0)
    return ratio


def _estimate(value: float, error: float, drawn: Floats, confidence: float) -> Estimate:
    margin = NormalDist().inv_cdf(0.5 + confidence / 2) * float(error)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(value), float(error), float(value) - margin, float(value) + margin, float(low), float(high))


def _warnings(log: Log, policy: Floats, weights: Floats, effective: float) -> list[str]:
    found, n = [], len(log.arms)
    unseen = [arm for arm in range(log.count) if not np.any(log.arms == arm)]
    lost = float(policy[:, unseen].sum()) / n if unseen else 0.0
    if lost > 0:
        found.append(
            f"{100 * lost:.3g} % of the policy's choices are arms that the log never took: nothing is known of them"
        )
    if effective < _FEW:
        found.append(f"the log says as much as {effective:.1f} decisions of the policy's own; intervals are guesses")
    elif effective < 0.1 * n:
        found.append(f"the log says as much as {effective:,.0f} decisions of the policy's own, of {n:,}")
    used = log.propensities[weights > 0]
    if used.size and used.min() < _TINY:
        few = int(np.sum(used < _TINY))
        found.append(
            f"{few:,} of the decisions that count had a propensity below {_TINY:g} (the least is {used.min():.2g}): "
            f"one weighs up to {weights.max():,.0f}, so that few decide the estimate; look at SNIPS and DR"
        )
    spread = float(weights.std(ddof=1)) / math.sqrt(n)
    if lost == 0 and abs(float(weights.mean()) - 1) > 4 * spread + 1e-9:
        found.append(
            f"weights are {weights.mean():.3f} on average instead of 1: the propensities are not those of the log"
        )
    return found
