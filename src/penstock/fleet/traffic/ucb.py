"""UCB1: optimism in the face of uncertainty, spread over the requests until the figures have changed.

UCB1 takes the arm with the largest index, mean + √(2 ln t / n), and looks again after each reward. Weights last for
many requests. All of them to the arm with the largest index would give a logged propensity of 0 or 1, which no
off-policy estimate can use, and swing whole periods of traffic between arms. So the weights are the shares in which
UCB1 itself would pull the arms over the next `ahead` rewards, if the means stayed: pulls that bring the indices to one
common level. See docs/decisions/0006-ucb-weights.md.

Source: Auer, Cesa-Bianchi & Fischer, Finite-time analysis of the multiarmed bandit problem, Machine Learning 47 (2002);
their UCB2 plays in epochs that grow by a constant share, as `ahead` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.fleet import policy_options
from penstock.fleet.evidence import rewards
from penstock.fleet.evidence.sequential import Sample
from penstock.fleet.evidence.shares import eligible, trying, weights
from penstock.fleet.policy_options import option
from penstock.fleet.traffic import Decision, Observation

_LEAST_AHEAD = 10  # rewards for each arm


@dataclass(frozen=True, slots=True)
class Options(rewards.RewardOptions):
    exploration: float = option(2.0, "c in the index mean + √(c ln t / n); 2 is UCB1.", minimum=1e-6)
    ahead: float = option(
        0.05, "The weights are UCB1's pulls over this many more rewards, as a share of those that came.",
        minimum=1e-3, maximum=1,
    )  # fmt: skip
    floor: float = option(0.01, "The least share of every ready arm.", minimum=0, maximum=1)


class Ucb:
    name = "ucb"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy ucb")

    def decide(self, options: Options, observed: Observation) -> Decision:
        statistics = {arm.revision: arm.statistics for arm in observed.arms}
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        samples, alarms = rewards.of_arms({revision: statistics[revision] for revision in ready}, options)
        tried = {revision: sample for revision, sample in samples.items() if sample.count > 0}
        shares = trying(_pulls(tried, options), [revision for revision in ready if revision not in tried])
        made = weights(statistics, shares, options.floor)
        return Decision(made, alarms=alarms, explanation=rewards.told(statistics, made, alarms))


def _pulls(samples: Mapping[int, Sample], options: Options) -> dict[int, float]:
    """How often UCB1 would pull each arm next: n(level) - n, where n(level) = c ln t / (level - mean)² is the count at
    which an arm's index has come down to `level`."""
    if len(samples) < 2:
        return dict.fromkeys(samples, 1.0)
    total = sum(sample.count for sample in samples.values())
    bonus = options.exploration * math.log(max(total, 2.0))
    ahead = max(options.ahead * total, _LEAST_AHEAD * len(samples))
    # Between these levels: at the upper one no arm is pulled, at the lower one the best alone takes more than `ahead`.
    best = max(sample.mean for sample in samples.values())
    low = best + math.sqrt(bonus / (total + 2 * ahead))
    high = max(sample.mean + math.sqrt(bonus / sample.count) for sample in samples.values())

    def pulls(level: float) -> dict[int, float]:
        return {
            revision: max(0.0, bonus / (level - sample.mean) ** 2 - sample.count)
            for revision, sample in samples.items()
        }

    for _ in range(60):
        level = (low + high) / 2
        if sum(pulls(level).values()) > ahead:
            low = level
        else:
            high = level
    return pulls(low)


plug = Ucb()
