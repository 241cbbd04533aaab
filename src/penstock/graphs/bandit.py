"""Which way a router node goes, and what it learns. Pure: random numbers are arguments.

Epsilon-greedy explores among the ways that are not the best, as Seldon's does, so the best gets 1 - epsilon exactly.
Rewards are kept as they come: 0.7 counts 0.7, where Seldon's cut fractions off. Thompson draws from
Beta(1 + rewards, 1 + trials - rewards) for each way, rewards between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.core.errors import InvalidInput
from penstock.graphs.definition import Bandit


class Random(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float: ...

    def betavariate(self, alpha: float, beta: float) -> float: ...


@dataclass(slots=True)
class Way:
    """What is known of one way: how many rewards came back for it, and their sum."""

    trials: float = 0.0
    rewards: float = 0.0

    @property
    def mean(self) -> float:
        """The mean reward; 0 while nothing is known."""
        return self.rewards / self.trials if self.trials else 0.0


def choose(bandit: Bandit, ways: Sequence[Way], random: Random) -> int:
    """The index of the way to go."""
    if bandit.policy == "thompson":
        drawn = [random.betavariate(1.0 + way.rewards, 1.0 + max(0.0, way.trials - way.rewards)) for way in ways]
        return drawn.index(max(drawn))
    best = _best(bandit, ways, random)
    if len(ways) == 1 or random.random() >= bandit.epsilon:
        return best
    others = [index for index in range(len(ways)) if index != best]
    return others[min(int(random.random() * len(others)), len(others) - 1)]


def learn(ways: Sequence[Way], index: int, reward: float, trials: float = 1.0) -> None:
    """Adds the mean `reward` of `trials` answers of one way.

    Raises:
        InvalidInput: the reward is not between 0 and 1, or there is no such way.
    """
    if not 0.0 <= reward <= 1.0:  # also of NaN
        raise InvalidInput(f"the reward is {reward}; it is between 0 and 1")
    if not 0 <= index < len(ways):
        raise InvalidInput(f"there is no way {index}; there are {len(ways)}")
    ways[index].trials += trials
    ways[index].rewards += reward * trials


def _best(bandit: Bandit, ways: Sequence[Way], random: Random) -> int:
    if not any(way.trials for way in ways):
        return bandit.best
    highest = max(way.mean for way in ways)
    ties = [index for index, way in enumerate(ways) if way.mean == highest]
    return ties[0] if len(ties) == 1 else ties[min(int(random.random() * len(ties)), len(ties) - 1)]
