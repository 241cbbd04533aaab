"""LinUCB with disjoint models: the arm whose reward is promising for this request's context, and with probability ε
any.

Rewards of an arm are taken as linear in the context x. From its rewarded decisions, A = λI + Σ x xᵀ and b = Σ reward·x,
so θ = A⁻¹b; the arm's index is θ·x + α √(xᵀA⁻¹x). The controller inverts once per decision and puts A⁻¹ and θ into the
route table; routers only multiply. ε keeps every propensity above 0, which off-policy evaluation needs.

Sources: Li, Chu, Langford & Schapire, A contextual-bandit approach to personalized news article recommendation (WWW
2010), Algorithm 1; Chu, Li, Reyzin & Schapire, Contextual bandits with linear payoff functions (AISTATS 2011) for the
regret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

import numpy as np
import numpy.typing as npt

from penstock.core.errors import InvalidInput
from penstock.fleet import policy_options
from penstock.fleet.evidence import rewards
from penstock.fleet.evidence.shares import eligible, weights
from penstock.fleet.policy_options import option
from penstock.fleet.routes import Contextual
from penstock.fleet.state import ArmStatistics
from penstock.fleet.traffic import Arm, Decision, Observation

_MAX_DIMENSION = 64  # 4,096 numbers per arm in the route table, and a choice among 4 arms takes about 1 ms


@dataclass(frozen=True, slots=True)
class Options:
    dimension: int = option(0, "How many numbers a context has. To be given.", minimum=0, maximum=_MAX_DIMENSION)
    alpha: float = option(1.0, "How much an arm gains from being little known for a context.", minimum=0)
    epsilon: float = option(
        0.05, "The share of requests that go to any arm, whatever their context.", minimum=1e-6, maximum=1
    )
    ridge: float = option(1.0, "λ: how strongly coefficients are held near 0 while little is known.", minimum=1e-6)
    context_limit: float = option(
        1000.0, "Contexts with a number beyond ± this are refused: one huge number would outweigh all others.",
        minimum=1e-6, maximum=1e6,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise InvalidInput(
                f"traffic policy linucb needs dimension, how many numbers a context has: 1 to {_MAX_DIMENSION}"
            )


class LinUcb:
    name = "linucb"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy linucb")

    def decide(self, options: Options, observed: Observation) -> Decision:
        """Weights are equal: they are for display, and for requests whose arm is not to be chosen by context."""
        statistics = {arm.revision: arm.statistics for arm in observed.arms}
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        made = weights(statistics, dict.fromkeys(ready, 1.0))
        solved = [_solve(arm, options) if arm.revision in ready else ((), ()) for arm in observed.arms]
        alarms = tuple(
            f"rewards of revision {arm.revision} were recorded with contexts of another length than "
            f"{options.dimension}; they are left out"
            for arm in observed.arms
            if arm.statistics.gram and len(arm.statistics.gram) != options.dimension**2
        )
        contextual = Contextual(
            policy=self.name,
            dimension=options.dimension,
            options={
                "alpha": options.alpha,
                "epsilon": options.epsilon,
                "ridge": options.ridge,
                "context_limit": options.context_limit,
            },
            inverse=tuple(inverse for inverse, _ in solved),
            coefficients=tuple(coefficients for _, coefficients in solved),
        )
        explanation = (
            f"chosen per request by its context of {options.dimension} numbers, {100 * options.epsilon:.3g} % at "
            f"random; {_told(observed)}"
        )
        return Decision(made, alarms=alarms, explanation=explanation, contextual=contextual)

    def choose(self, parameters: Contextual, context: Sequence[float], draw: float) -> tuple[int, float]:
        """As in `fleet.traffic.ContextualPolicy`. Takes about 20 µs for 8 numbers and 4 arms."""
        x = checked(parameters, context)
        alpha, epsilon = parameters.options["alpha"], parameters.options["epsilon"]
        if parameters.inverse:
            inverses, coefficients = parameters.inverse, parameters.coefficients
        else:
            inverses, coefficients = _solved_here(parameters)
        outer = [a * b for a in x for b in x]
        candidates, best, best_index = [], 0, -math.inf
        for arm, inverse in enumerate(inverses):
            if not inverse:
                continue
            candidates.append(arm)
            width = sum(map(mul, outer, inverse))
            index = sum(map(mul, x, coefficients[arm])) + alpha * math.sqrt(width if width > 0 else 0.0)
            if index > best_index:
                best, best_index = arm, index
        if not candidates:
            raise InvalidInput("no arm may be chosen")
        # The line from 0 to 1: first the best's own part, 1 - ε, then ε in equal parts for all.
        each = epsilon / len(candidates)
        if draw < 1.0 - epsilon:
            return best, 1.0 - epsilon + each
        explored = candidates[min(int((draw - (1.0 - epsilon)) / each), len(candidates) - 1)]
        return explored, 1.0 - epsilon + each if explored == best else each


def checked(parameters: Contextual, context: Sequence[float]) -> Sequence[float]:
    """The context. Raises: InvalidInput: it has another length, or numbers that are not finite or too large."""
    if len(context) != parameters.dimension:
        raise InvalidInput(f"the context has {len(context)} numbers; this endpoint takes {parameters.dimension}")
    limit = parameters.options.get("context_limit", math.inf)
    for at, number in enumerate(context):
        if not -limit <= number <= limit or not math.isfinite(number):
            raise InvalidInput(f"number {at} of the context is {number:g}; allowed is -{limit:g} to {limit:g}")
    return context


def _solve(arm: Arm, options: Options) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A⁻¹ (d·d) and θ (d) of one arm."""
    statistics, d = arm.statistics, options.dimension
    if len(statistics.gram) != d * d or len(statistics.moment) != d:
        statistics = ArmStatistics(gram=(0.0,) * (d * d), moment=(0.0,) * d)
    return _inverted(statistics.gram, statistics.moment, d, options.ridge)


def _solved_here(parameters: Contextual) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    d, ridge = parameters.dimension, parameters.options.get("ridge", 1.0)
    pairs = [
        _inverted(gram, moment, d, ridge) if gram else ((), ())
        for gram, moment in zip(parameters.gram, parameters.moment, strict=True)
    ]
    return tuple(inverse for inverse, _ in pairs), tuple(coefficients for _, coefficients in pairs)


def _inverted(
    gram: Sequence[float], moment: Sequence[float], d: int, ridge: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    matrix: npt.NDArray[np.float64] = np.asarray(gram, dtype=float).reshape(d, d) + ridge * np.eye(d)
    inverse = np.linalg.inv(matrix)
    return tuple(inverse.ravel().tolist()), tuple((inverse @ np.asarray(moment, dtype=float)).tolist())


def _told(observed: Observation) -> str:
    statistics = {arm.revision: arm.statistics for arm in observed.arms}
    requests = sum(one.requests for one in statistics.values())
    return rewards.told(
        statistics, {revision: one.requests / requests if requests else 0.0 for revision, one in statistics.items()}
    ).replace("gets", "got")


plug = LinUcb()
