"""Tests that may be looked at after every request, and stopped whenever one likes: each gives the evidence against a
claim as an e-value, whose chance to ever reach 1/α is at most α while the claim is true.

Theory of operation. A sample is known by its sums only, because that is what adds up over routers. For one arm, whose
observations are in [0, 1] with mean m, there is a wealth W(m) that a gambler has who bets against m. It is a
nonnegative supermartingale that starts at 1, so by Ville's inequality it reaches 1/α with a chance of at most α, ever.

- Of yes and no: W(m) = ∫ likelihood(q) dBeta(q; ½, ½) / likelihood(m), Robbins' mixture, which is the mixture SPRT.
  What was seen before the sample began may say where to look: half of the mixture is then Beta(½+yes, ½+no) of it.
- Of any numbers in [0, 1]: half of it is the same formula, which holds for fractions too (x ↦ aˣb¹⁻ˣ is convex); half
  is the mean over λ of exp(λ Σ(x−m) − ψ(λ) Σ(x−m)²), ψ(λ) = −log(1−λ) − λ, which gains from a small variance.

Two arms: the wealths of both multiply, whatever decides which arm is asked next (a bandit, a canary's steps). A claim
about two means, such as a ≤ b + margin, is a set of pairs; the evidence against it is the smallest product in the set.

Sources: Ville 1939; Robbins, Ann. Math. Stat. 41 (1970); Wasserman, Ramdas & Balakrishnan, Universal inference, PNAS
117 (2020); Johari, Koomen, Pekelis & Walsh, Always valid inference, Operations Research 70 (2022); Fan, Grama & Liu,
Exponential inequalities for martingales, EJP 20 (2015); Howard, Ramdas, McAuliffe & Sekhon,
Time-uniform confidence sequences, Ann. Stat. 49 (2021); Waudby-Smith & Ramdas, Estimating means of bounded random
variables by betting, JRSS B 86 (2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LONGEST_MEMORY = 2000.0  # observations before: with more, a rate that has moved a little would be believed too firmly
_LEAST = 1e-300
_STEPS = 60  # of bisection: as many as halve 1 down to what a float can tell apart
_BETS = np.array([0.9, 0.7, *(0.5 * 0.5 ** np.arange(13))])  # λ < 1; √(2 log(1/α) / (n·variance)) is best: n to 10⁹
_COSTS = -np.log1p(-_BETS) - _BETS
_TOLERANCE = 0.01  # of log evidence over two means; what is given back is below the true value
_PLENTY = 50.0  # no threshold is as large: how much more there is need not be found out


@dataclass(frozen=True, slots=True)
class Sample:
    """Observations in [0, 1] by their sums. `binary` promises that each was 0 or 1, which tells more.

    `before` is how many yes and no came before the sample began. It only makes evidence come sooner where they still
    tell the truth; the sample alone is judged.
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    binary: bool = False
    before: tuple[float, float] = (0.0, 0.0)

    @property
    def mean(self) -> float:
        """0 without observations."""
        return self.total / self.count if self.count else 0.0

    def thinned(self, factor: float) -> Sample:
        """As if there were one observation for each `factor`: for those that come in groups that are alike."""
        before = self.before[0] / factor, self.before[1] / factor
        return Sample(self.count / factor, self.total / factor, self.squares / factor, self.binary, before)


def events(number: float, of: float, before: float = 0.0, of_before: float = 0.0) -> Sample:
    """The sample of yes and no that had `number` yes; `before` it there had been so many of so many."""
    shrunk = min(1.0, _LONGEST_MEMORY / of_before) if of_before else 0.0
    return Sample(of, number, number, True, (before * shrunk, (of_before - before) * shrunk))


def log_evidence_above(sample: Sample, limit: float) -> float:
    """Log evidence against the claim that the mean is at most `limit` (0 to 1)."""
    return float(_log_wealth_above(sample, np.array([limit]))[0])


def log_evidence_below(sample: Sample, limit: float) -> float:
    """Log evidence against the claim that the mean is at least `limit` (0 to 1)."""
    return log_evidence_above(_mirrored(sample), 1.0 - limit)


def log_evidence_greater(a: Sample, b: Sample, margin: float = 0.0) -> float:
    """Log evidence against the claim that mean(a) ≤ mean(b) + margin; `margin` is between -1 and 1.

    With a negative margin: that `a` is not worse than `b` by that much or more.
    """
    if a.binary and b.binary:
        return _log_mixture(a) + _log_mixture(b) - _best_likelihood(a, b, margin)
    return _smallest_product(a, b, margin)


def confidence_bounds(sample: Sample, alpha: float) -> tuple[float, float]:
    """Between which the mean lies, at every moment at once with a chance of at least 1 - alpha."""
    threshold = math.log((1.0 if sample.binary else 2.0) / alpha)
    mirrored = _mirrored(sample)
    return _lower_bound(sample, threshold), 1.0 - _lower_bound(mirrored, threshold)


def _lower_bound(sample: Sample, threshold: float) -> float:
    """The largest mean that the evidence speaks against from above; it falls as the mean grows."""
    low, high = 0.0, sample.mean
    for _ in range(8):  # each to a sixteenth: to less than a billionth
        means = np.linspace(low, high, 17)
        against = np.flatnonzero(_log_wealth_above(sample, means) >= threshold)
        if not len(against) or against[-1] == 16:
            return low if not len(against) else high
        low, high = float(means[against[-1]]), float(means[against[-1] + 1])
    return low


def _mirrored(sample: Sample) -> Sample:
    """The sample of 1 - x."""
    count, total = sample.count, sample.total
    return Sample(count, count - total, count - 2 * total + sample.squares, sample.binary, sample.before[::-1])


def _log_mixture(sample: Sample) -> float:
    """The log likelihood, averaged over Beta(½, ½) and over what was seen before."""
    plain = _log_average(sample, 0.5, 0.5)
    if sample.before == (0.0, 0.0):
        return plain
    told = _log_average(sample, 0.5 + sample.before[0], 0.5 + sample.before[1])
    return max(plain, told) + math.log1p(math.exp(-abs(plain - told))) - math.log(2)


def _log_average(sample: Sample, yes: float, no: float) -> float:
    """log ∫ likelihood(q) dBeta(q; yes, no)."""
    more_yes, more_no = max(sample.total, 0.0), max(sample.count - sample.total, 0.0)
    return _log_beta(yes + more_yes, no + more_no) - _log_beta(yes, no)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_likelihood(sample: Sample, mean: float) -> float:
    yes, no = sample.total, sample.count - sample.total
    if (yes > 0 and mean <= 0) or (no > 0 and mean >= 1):
        return -math.inf
    return (yes * math.log(mean) if yes > 0 else 0.0) + (no * math.log1p(-mean) if no > 0 else 0.0)


def _best_likelihood(a: Sample, b: Sample, margin: float) -> float:
    """The largest log likelihood of both samples among means that fit mean(a) ≤ mean(b) + margin."""
    if a.mean <= b.mean + margin:
        return _log_likelihood(a, a.mean) + _log_likelihood(b, b.mean)
    # It is on the edge, mean(b) = t and mean(a) = t + margin, and concave in t: where the slope turns.
    low, high = max(0.0, -margin), min(1.0, 1.0 - margin)
    yes_a, no_a, yes_b, no_b = a.total, a.count - a.total, b.total, b.count - b.total
    for _ in range(_STEPS):
        t = (low + high) / 2
        slope = yes_a / max(t + margin, _LEAST) if yes_a > 0 else 0.0
        slope += yes_b / max(t, _LEAST) if yes_b > 0 else 0.0
        slope -= no_a / max(1 - t - margin, _LEAST) if no_a > 0 else 0.0
        slope -= no_b / max(1 - t, _LEAST) if no_b > 0 else 0.0
        if slope > 0:
            low = t
        else:
            high = t
    # Where the best is at an end, bisection stays a hair inside of it and the likelihood is the end's own in the limit.
    return max(_log_likelihood(a, t + margin) + _log_likelihood(b, t) for t in (low, (low + high) / 2, high))


def _log_wealth_above(sample: Sample, means: Floats) -> Floats:
    """Log wealth of one who bets that the mean is above `means` (any shape); it falls as they grow.

    Where a mean is above the sample's own, the mixture's smallest value stands in: less than the wealth, so allowed.
    """
    yes, no = max(sample.total, 0.0), max(sample.count - sample.total, 0.0)
    capped = np.minimum(means, sample.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (yes * np.log(capped) if yes else 0.0) + (no * np.log1p(-capped) if no else 0.0)
    mixture: Floats = _log_mixture(sample) - np.asarray(likelihood + np.zeros_like(means))
    if sample.binary:
        return mixture
    distance = sample.total - sample.count * means
    spread = np.maximum(sample.squares - 2 * means * sample.total + sample.count * means**2, 0.0)
    # As a function of the mean a bet is a parabola that may rise at first. Its smallest value up to the mean, at one
    # end as it is concave, is no more than the bet, and falls.
    bets = np.minimum(
        np.multiply.outer(distance, _BETS) - np.multiply.outer(spread, _COSTS),
        sample.total * _BETS - sample.squares * _COSTS,
    )
    top = bets.max(axis=-1)
    bounded: Floats = np.logaddexp(mixture, top + np.log(np.exp(bets - top[..., None]).mean(axis=-1))) - math.log(2)
    return bounded


def _smallest_product(a: Sample, b: Sample, margin: float) -> float:
    """The smallest log product of wealths where mean(a) ≤ mean(b) + margin, or less: by `_TOLERANCE` at most between 0
    and `_PLENTY`, which is where it matters.

    The wealth against a's mean falls as that grows and the one against b's rises, so the smallest product is on the
    edge mean(a) = mean(b) + margin; in a cell of it, the product is at least b's at the left end times a's at the right
    end. Cells that cannot hold the smallest are dropped, the others split.
    """
    if a.mean <= b.mean + margin:
        return -math.inf  # nothing speaks against the claim; to search for how little would be a waste
    mirrored = _mirrored(b)
    edges = np.linspace(max(0.0, -margin), 1.0, 65)
    left, right = edges[:-1], edges[1:]
    floor = -math.inf
    for _ in range(40):
        against_b = _log_wealth_above(mirrored, 1.0 - np.stack((left, right)))
        against_a = _log_wealth_above(a, np.minimum(np.stack((left, right)) + margin, 1.0))
        least = against_b[0] + against_a[1]
        reached = float((against_b + against_a).min())
        floor = float(least.min())
        if reached - floor <= _TOLERANCE or reached < 0 or floor > _PLENTY:
            break
        open_cells = np.flatnonzero(least <= reached)
        if len(open_cells) > 512:
            break  # flat over a wide range; what was found so far is a floor too
        middle = (left[open_cells] + right[open_cells]) / 2
        left, right = np.concatenate((left[open_cells], middle)), np.concatenate((middle, right[open_cells]))
    return floor
