"""ε-greedy: the arm with the best mean reward, and with probability ε any.

Sources: Sutton & Barto, Reinforcement Learning (2018), section 2.2; with `decay_rewards` the εₙ-greedy of Auer,
Cesa-Bianchi & Fischer, Finite-time analysis of the multiarmed bandit problem, Machine Learning 47 (2002), Theorem 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.fleet import policy_options
from penstock.fleet.evidence import rewards
from penstock.fleet.evidence.shares import eligible, trying, weights
from penstock.fleet.policy_options import option
from penstock.fleet.traffic import Decision, Observation

EXPLORE = ("all", "others")


@dataclass(frozen=True, slots=True)
class Options(rewards.RewardOptions):
    epsilon: float = option(0.1, "The share of requests that explore.", minimum=0, maximum=1)
    explore: str = option(
        "all", "`all`: exploring requests go to any arm, the best too; `others`: to the others only, as in Seldon Core."
    )
    decay_rewards: float | None = option(
        None, "ε falls as ε / (1 + rewards / decay_rewards); unset, it stays.", minimum=1
    )
    epsilon_minimum: float = option(0.0, "ε does not fall below this.", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        rewards.RewardOptions.__post_init__(self)
        if self.explore not in EXPLORE:
            raise InvalidInput(
                f"explore is {self.explore!r}; one of {', '.join(EXPLORE)}{nearest(self.explore, EXPLORE)}"
            )
        if self.epsilon_minimum > self.epsilon:
            raise InvalidInput(f"epsilon_minimum is {self.epsilon_minimum:g}, above epsilon ({self.epsilon:g})")


class EpsilonGreedy:
    name = "epsilon_greedy"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy epsilon_greedy")

    def decide(self, options: Options, observed: Observation) -> Decision:
        statistics = {arm.revision: arm.statistics for arm in observed.arms}
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        samples, alarms = rewards.of_arms({revision: statistics[revision] for revision in ready}, options)
        epsilon = options.epsilon
        if options.decay_rewards is not None:
            seen = sum(sample.count for sample in samples.values())
            epsilon = max(options.epsilon_minimum, epsilon / (1 + seen / options.decay_rewards))
        known = {revision: sample.mean for revision, sample in samples.items() if sample.count > 0}
        shares = trying(_greedy(known, epsilon, options.explore), [one for one in ready if one not in known])
        made = weights(statistics, shares)
        explanation = f"ε {epsilon:.3g}; {rewards.told(statistics, made, alarms)}"
        return Decision(made, alarms=alarms, explanation=explanation)


def _greedy(means: Mapping[int, float], epsilon: float, explore: str) -> dict[int, float]:
    """Shares of arms: arms with equally good means share the best's part."""
    if not means:
        return {}
    top = max(means.values())
    best = [revision for revision, mean in means.items() if mean == top]
    others = len(means) - len(best) if explore == "others" else len(means)
    if not others:
        return dict.fromkeys(means, 1.0)
    shares = {}
    for revision in means:
        share = (1 - epsilon) / len(best) if revision in best else 0.0
        if explore == "all" or revision not in best:
            share += epsilon / others
        shares[revision] = share
    return shares


plug = EpsilonGreedy()
