"""What is known of the rewards of arms, in [0, 1], with errors counted as what they are to the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.fleet.evidence.sequential import Sample
from penstock.fleet.evidence.words import count
from penstock.fleet.policy_options import option
from penstock.fleet.state import ArmStatistics

_ROUNDING = 1e-6  # of sums, relative: what float sums of a billion rewards may be off by


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """Options of all policies that go by rewards."""

    reward_low: float = option(0.0, "The smallest reward that is sent.")
    reward_high: float = option(1.0, "The largest reward that is sent.")
    error_reward: float | None = option(
        0.0, "What a failed request counts as, as no feedback comes for it; `null` leaves failed requests out."
    )

    def __post_init__(self) -> None:
        if not self.reward_low < self.reward_high:
            raise InvalidInput(f"reward_low is {self.reward_low:g} and reward_high {self.reward_high:g}; low is below")
        if self.error_reward is not None and not self.reward_low <= self.error_reward <= self.reward_high:
            raise InvalidInput(
                f"error_reward is {self.error_reward:g}; it is between reward_low ({self.reward_low:g}) and "
                f"reward_high ({self.reward_high:g}), or null"
            )


def with_errors(statistics: Mapping[int, ArmStatistics], error_reward: float | None) -> dict[int, Sample]:
    """Rewards by revision as they were sent, and `error_reward` for failed requests.

    Only some requests get feedback. A failed request counts as much as an answered one does on average over all arms:
    as (rewards / answered requests) rewards, at most one.
    """
    answered = sum(max(one.requests - one.errors, 0) for one in statistics.values())
    rewards = sum(one.rewards for one in statistics.values())
    each = min(1.0, rewards / answered) if answered else 0.0
    made = {}
    for revision, one in statistics.items():
        failed = one.errors * each if error_reward is not None else 0.0
        value = error_reward or 0.0
        made[revision] = Sample(
            one.rewards + failed, one.reward_sum + failed * value, one.reward_squares + failed * value**2
        )
    return made


def scaled(samples: Mapping[int, Sample], low: float, high: float) -> tuple[dict[int, Sample], tuple[str, ...]]:
    """Samples of (reward - low) / (high - low), and alarms of revisions whose rewards cannot all be in [0, 1]."""
    width, made, alarms = high - low, {}, []
    for revision, raw in samples.items():
        total = (raw.total - raw.count * low) / width
        squares = (raw.squares - 2 * low * raw.total + raw.count * low**2) / width**2
        slack = _ROUNDING * (raw.count + 1)
        # Of numbers in [0, 1] the squares are no larger than the numbers.
        if total < -slack or total > raw.count + slack or squares > total + slack:
            alarms.append(
                f"rewards of revision {revision} are not all between {low:g} and {high:g} (mean "
                f"{raw.mean:.4g} of {count(raw.count)}): set reward_low and reward_high"
            )
        total = min(max(total, 0.0), raw.count)
        made[revision] = Sample(raw.count, total, min(max(squares, 0.0), total))
    return made, tuple(alarms)


def of_arms(
    statistics: Mapping[int, ArmStatistics], options: RewardOptions
) -> tuple[dict[int, Sample], tuple[str, ...]]:
    """Rewards in [0, 1] by revision, errors counted; and alarms."""
    samples = with_errors(statistics, options.error_reward)
    return scaled(samples, options.reward_low, options.reward_high)


def told(statistics: Mapping[int, ArmStatistics], shares: Mapping[int, float], alarms: tuple[str, ...] = ()) -> str:
    """One line for people: each arm's mean reward and share."""
    parts = []
    for revision, share in shares.items():
        one = statistics[revision]
        mean = f"{one.reward_sum / one.rewards:.4g} of {count(one.rewards)} rewards" if one.rewards else "no reward yet"
        failed = f", {count(one.errors)} failed" if one.errors else ""
        parts.append(f"revision {revision}: {mean}{failed}, gets {100 * share:.3g} %")
    return "; ".join(parts) + ("" if not alarms else f" ({'; '.join(alarms)})")
