"""Softmax, also Boltzmann exploration: shares in proportion to exp(mean reward / temperature).

Source: Sutton & Barto, Reinforcement Learning (1998), section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.fleet import policy_options
from penstock.fleet.evidence import rewards
from penstock.fleet.evidence.shares import eligible, trying, weights
from penstock.fleet.policy_options import option
from penstock.fleet.traffic import Decision, Observation


@dataclass(frozen=True, slots=True)
class Options(rewards.RewardOptions):
    temperature: float = option(
        0.05,
        "An arm whose mean is better by this, as a share of reward_low to reward_high, gets 2.7 times as much.",
        minimum=1e-6,
    )
    floor: float = option(0.01, "The least share of every ready arm.", minimum=0, maximum=1)


class Softmax:
    name = "softmax"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy softmax")

    def decide(self, options: Options, observed: Observation) -> Decision:
        statistics = {arm.revision: arm.statistics for arm in observed.arms}
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        samples, alarms = rewards.of_arms({revision: statistics[revision] for revision in ready}, options)
        means = {revision: sample.mean for revision, sample in samples.items() if sample.count > 0}
        top = max(means.values(), default=0.0)
        known = {revision: math.exp((mean - top) / options.temperature) for revision, mean in means.items()}
        shares = trying(known, [revision for revision in ready if revision not in known])
        made = weights(statistics, shares, options.floor)
        return Decision(made, alarms=alarms, explanation=rewards.told(statistics, made, alarms))


plug = Softmax()
