"""What a traffic policy would have decided along a log: the probability of each arm at each decision.

The policy sees at each decision what was known by then: rewards that had come, in the log of whoever ran. So its
probabilities never depend on what they are judged by, and the estimate is of this policy learning from that log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.core.errors import InvalidInput
from penstock.fleet import traffic
from penstock.fleet.routes import Contextual
from penstock.fleet.state import ArmStatistics
from penstock.fleet.store.batch import LoggedDecision
from penstock.fleet.traffic import ContextualPolicy, Observation, Policy

_MOST_ASKED = 256  # of `choose`, per decision


class _Known:
    """What is known of one arm so far."""

    __slots__ = ("gram", "moment", "requests", "rewards", "squares", "sum")

    def __init__(self) -> None:
        self.requests = 0
        self.rewards = 0
        self.sum = 0.0
        self.squares = 0.0
        self.gram: NDArray[np.float64] | None = None
        self.moment: NDArray[np.float64] | None = None

    def reward(self, value: float, context: Sequence[float]) -> None:
        self.rewards += 1
        self.sum += value
        self.squares += value * value
        if context:
            x = np.array(context)
            if self.gram is None or self.moment is None:
                self.gram, self.moment = np.zeros((x.size, x.size)), np.zeros(x.size)
            if x.size == self.moment.size:
                self.gram += np.outer(x, x)
                self.moment += value * x

    def statistics(self) -> ArmStatistics:
        none: tuple[float, ...] = ()
        return ArmStatistics(
            requests=self.requests, rewards=self.rewards, reward_sum=self.sum, reward_squares=self.squares,
            gram=none if self.gram is None else tuple(self.gram.ravel().tolist()),
            moment=none if self.moment is None else tuple(self.moment.tolist()),
        )  # fmt: skip


def replay(
    policy: Policy, options: Mapping[str, object], log: Sequence[LoggedDecision], arms: Sequence[int], stable: int,
    *, every: int = 100,
) -> NDArray[np.float64]:  # fmt: skip
    """The probabilities (n, arms) of the policy at each decision of `log`, which is in the order of time.

    It decides anew `every` so many decisions. Once it has a verdict, its arm has everything.

    Raises:
        InvalidInput: options that the policy refuses, or a contextual policy and decisions without their contexts.
    """
    chosen = policy.options(options)
    place = {revision: index for index, revision in enumerate(arms)}
    known = [_Known() for _ in arms]
    # Rewards come when they came: a policy cannot learn from the future. A log without that time has them at once.
    coming = sorted(
        (one.decision.at if one.rewarded_at is None else one.rewarded_at, number)
        for number, one in enumerate(log)
        if one.reward is not None
    )
    came, memory, winner = 0, dict[str, object](), None
    began = log[0].decision.at if log else 0.0
    probabilities = np.zeros((len(log), len(arms)))
    row, contextual = np.zeros(len(arms)), None
    for number, one in enumerate(log):
        now = one.decision.at
        while came < len(coming) and coming[came][0] <= now and coming[came][1] < number:
            of = log[coming[came][1]]
            assert of.reward is not None
            known[place[of.decision.revision]].reward(of.reward, of.decision.context)
            came += 1
        if number % every == 0 and winner is None:
            observed = Observation(
                now, began, [traffic.Arm(arm, True, began, known[place[arm]].statistics()) for arm in arms], stable,
                memory,
            )  # fmt: skip
            decided = policy.decide(chosen, observed)
            memory, contextual = dict(decided.memory), decided.contextual
            row = np.array([decided.weights.get(arm, 0.0) for arm in arms])
            if decided.verdict is not None:
                winner = decided.verdict.revision if decided.verdict.promote else stable
                row, contextual = np.array([float(arm == winner) for arm in arms]), None
        known[place[one.decision.revision]].requests += 1
        if contextual is not None and isinstance(policy, ContextualPolicy):
            probabilities[number] = _chances(policy, contextual, one.decision.context, len(arms))
        else:
            probabilities[number] = row
    normal: NDArray[np.float64] = probabilities / probabilities.sum(axis=1, keepdims=True)
    return normal


def _chances(
    policy: ContextualPolicy, parameters: Contextual, context: Sequence[float], count: int
) -> NDArray[np.float64]:
    """The probability of each arm for one context: the line of draws is halved until the arms found make up 1."""
    found = np.zeros(count)

    def ask(draw: float) -> int:
        arm, propensity = policy.choose(parameters, context, draw)
        found[arm] = propensity
        return arm

    top = 1.0 - 2.0**-53
    parts = [(0.0, top, ask(0.0), ask(top))]
    for _ in range(_MOST_ASKED):
        if found.sum() > 1.0 - 1e-9 or not parts:
            break
        # Between two different arms a third may lie; a long part with the same arm at both ends may hide one, too.
        parts.sort(key=lambda part: (part[2] != part[3], part[1] - part[0]))
        low, high, first, last = parts.pop()
        middle = (low + high) / 2
        between = ask(middle)
        parts += [(low, middle, first, between), (middle, high, between, last)]
    if not found.sum() > 0:
        raise InvalidInput("the policy gives no arm any chance")
    return found
