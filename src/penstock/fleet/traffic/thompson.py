"""Thompson sampling: each arm gets as many requests as it is likely to be the best one.

Drawing a mean for each arm and taking the best, request by request, is the same as drawing from P(arm is best). Those
chances are computed once per decision, so that every choice's propensity is known.

Sources: Thompson, Biometrika 25 (1933); Agrawal & Goyal, Analysis of Thompson sampling for the multi-armed bandit
problem (COLT 2012) and Further optimal regret bounds for Thompson sampling (AISTATS 2013); with unknown variance Honda
& Takemura, Optimality of Thompson sampling for Gaussian bandits depends on priors (AISTATS 2014), with its α = -1/2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.fleet import policy_options
from penstock.fleet.evidence import rewards
from penstock.fleet.evidence.best_arm import best_of_betas, best_of_students
from penstock.fleet.evidence.sequential import Sample
from penstock.fleet.evidence.shares import eligible, trying, weights
from penstock.fleet.policy_options import option
from penstock.fleet.traffic import Decision, Observation

MODELS = ("beta", "gaussian")


@dataclass(frozen=True, slots=True)
class Options(rewards.RewardOptions):
    model: str = option(
        "beta",
        "`beta`: rewards from reward_low to reward_high, fractions too; `gaussian`: any numbers, of unknown variance.",
    )
    prior_successes: float = option(1.0, "beta: rewards that each arm is lent before its first.", minimum=1e-3)
    prior_failures: float = option(1.0, "beta: missing rewards that each arm is lent.", minimum=1e-3)
    initial_rewards: int = option(
        10, "gaussian: an arm with fewer rewards gets an equal share, whatever they were.", minimum=4
    )
    floor: float = option(0.01, "The least share of every ready arm.", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InvalidInput(f"model is {self.model!r}; one of {', '.join(MODELS)}{nearest(self.model, MODELS)}")
        if self.model == "beta":
            rewards.RewardOptions.__post_init__(self)
        elif (self.reward_low, self.reward_high) != (0.0, 1.0):
            raise InvalidInput("reward_low and reward_high have no effect with model gaussian, which takes any numbers")


class Thompson:
    name = "thompson"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy thompson")

    def decide(self, options: Options, observed: Observation) -> Decision:
        statistics = {arm.revision: arm.statistics for arm in observed.arms}
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        of_ready = {revision: statistics[revision] for revision in ready}
        alarms: tuple[str, ...] = ()
        if options.model == "beta":
            samples, alarms = rewards.of_arms(of_ready, options)
            shares = _beta(samples, options.prior_successes, options.prior_failures)
        else:
            shares = _gaussian(rewards.with_errors(of_ready, options.error_reward), options.initial_rewards)
        made = weights(statistics, shares, options.floor)
        return Decision(made, alarms=alarms, explanation=rewards.told(statistics, made, alarms))


def _beta(samples: Mapping[int, Sample], successes: float, failures: float) -> dict[int, float]:
    best = best_of_betas(
        [successes + sample.total for sample in samples.values()],
        [failures + sample.count - sample.total for sample in samples.values()],
    )
    shares = dict(zip(samples, best, strict=True))
    # The prior alone may call an arm without rewards the best: it is tried, but not with more than an equal share.
    eager = [one for one, sample in samples.items() if not sample.count and shares[one] * len(shares) > 1]
    known = {one: share for one, share in shares.items() if one not in eager}
    return trying(known, eager) if sum(known.values()) > 0 else dict.fromkeys(shares, 1.0)


def _gaussian(samples: Mapping[int, Sample], initial: int) -> dict[int, float]:
    """Posterior of a mean: Student's t with n-2 degrees of freedom around the sample's mean, of scale √(S/(n(n-2)))."""
    known = {revision: sample for revision, sample in samples.items() if sample.count >= initial}
    shares: dict[int, float] = {}
    if known:
        # Rewards that were all the same have no variance; a hair of one keeps the integrals finite.
        hair = 1e-9 * (max(abs(sample.mean) for sample in known.values()) or 1.0)
        degrees = [sample.count - 2 for sample in known.values()]
        spreads = [max(sample.squares - sample.total * sample.mean, 0.0) for sample in known.values()]
        scales = [
            max(math.sqrt(spread / (sample.count * freedom)), hair)
            for sample, spread, freedom in zip(known.values(), spreads, degrees, strict=True)
        ]
        best = best_of_students(degrees, [sample.mean for sample in known.values()], scales)
        shares = dict(zip(known, best, strict=True))
    return trying(shares, [revision for revision in samples if revision not in known])


plug = Thompson()
