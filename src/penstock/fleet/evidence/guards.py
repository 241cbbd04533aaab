"""Rules that a canary must keep, beside the stable arm and by itself, judged while it is watched all the time.

Theory of operation. A rule is a claim about shares or means ("the error rate is at most 1 % above the stable arm's").
Evidence against the claim rolls back; evidence against its opposite lets promote. Both are e-values of
`evidence.sequential`, over what was counted since a mark. There are several marks, because what was fine for an hour
must not hide what went wrong in the last minute: one where the step began, and newer ones, each when the requests since
the step began have grown by a tenth. Half of the weight is for the marks where steps begin, half for the newer ones;
the j-th of its kind has 1/((j+1)(j+2)) of that half. Weights sum to 1, so the weighted sum of the evidence is an
e-value too, and a canary that keeps a rule is ever rolled back by it with a chance of at most α.

A new step begins a new set of marks: shares differ between steps, and counts from before and after a change of shares
would compare different times of the day (Simpson's paradox). What was counted before only says where to look.

Source: Shin, Ramdas & Rinaldo, E-detectors: a nonparametric framework for sequential change detection, New England
Journal of Statistics in Data Science 2 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.fleet.evidence import latency, rewards
from penstock.fleet.evidence.sequential import (
    Sample,
    events,
    log_evidence_above,
    log_evidence_below,
    log_evidence_greater,
)
from penstock.fleet.evidence.words import percent, rate, seconds
from penstock.fleet.policy_options import option
from penstock.fleet.state import LATENCY_BOUNDS_S, ArmStatistics

_MARKS = 8  # the step's own and the newest others; each has some 20 numbers in the policy's memory
_GROWTH = 0.1
_LEAST_ANSWERS = 50  # before slow answers roll back: the first ones of a new replica come slowly, and together
_ANSWERS_BEYOND = 3  # a quantile of the stable arm is taken once so many answers are expected beyond it


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What a canary may do. Every rule that is set guards; the first three are compared with the stable arm."""

    error_tolerance: float | None = option(
        0.01, "Error rate: at most so much above the stable arm's; `null`: no such rule.", minimum=1e-6, maximum=1
    )
    latency_ratio: float | None = option(
        1.5,
        "Latency: at most this many times the stable arm's, at `latency_quantile`; `null`: no such rule.",
        minimum=1,
        maximum=1000,
    )
    reward_tolerance: float | None = option(
        None, "Mean reward: at most so much below the stable arm's; unset, rewards do not matter.", minimum=1e-6
    )
    max_error_rate: float | None = option(
        None, "Error rate: at most this, whatever the stable arm's.", minimum=1e-6, maximum=1
    )
    max_latency_s: float | None = option(
        None,
        "Latency: at most this at `latency_quantile`; up to the next bound of the histogram.",
        unit="s",
        minimum=1e-4,
    )
    min_reward: float | None = option(None, "Mean reward: at least this.")
    latency_quantile: float = option(0.99, "The quantile of both latency rules.", minimum=0.5, maximum=0.9999)
    reward_low: float = option(0.0, "The smallest reward that is sent.")
    reward_high: float = option(1.0, "The largest reward that is sent.")

    def __post_init__(self) -> None:
        if not self.reward_low < self.reward_high:
            raise InvalidInput(f"reward_low is {self.reward_low:g} and reward_high {self.reward_high:g}; low is below")
        if self.reward_tolerance is not None and self.reward_tolerance > self.reward_high - self.reward_low:
            raise InvalidInput(f"reward_tolerance is {self.reward_tolerance:g}, more than rewards can differ by")
        if self.min_reward is not None and not self.reward_low <= self.min_reward <= self.reward_high:
            bounds = f"{self.reward_low:g} to {self.reward_high:g}"
            raise InvalidInput(f"min_reward is {self.min_reward:g}; rewards are {bounds}")
        if self.max_latency_s is not None and latency.bound_of(self.max_latency_s) is None:
            last = f"{LATENCY_BOUNDS_S[-1]:.3g}"
            raise InvalidInput(f"max_latency_s is {self.max_latency_s:g}; more than {last} is not told apart")

    @property
    def rules(self) -> int:
        """How many are set."""
        compared = (self.error_tolerance, self.latency_ratio, self.reward_tolerance)
        alone = (self.max_error_rate, self.max_latency_s, self.min_reward)
        return sum(rule is not None for rule in (*compared, *alone))


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one arm: `slow` answers took longer than the mark's limit, `over` longer than `max_latency_s`."""

    requests: float = 0.0
    errors: float = 0.0
    answers: float = 0.0
    slow: float = 0.0
    over: float = 0.0
    rewards: float = 0.0
    reward_sum: float = 0.0
    reward_squares: float = 0.0

    def since(self, before: Tally) -> Tally:
        pairs = [(getattr(self, name), getattr(before, name)) for name in Tally.__slots__]
        return Tally(*(now - then for now, then in pairs))

    def numbers(self) -> list[float]:
        return [getattr(self, name) for name in Tally.__slots__]


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment from which on is counted. `limit` is the index of the latency bound that the stable arm implied;
    `number` counts the marks of its kind: those where a step began, and the others."""

    number: int
    opening: bool
    at: float
    limit: int | None
    canary: Tally
    stable: Tally

    @property
    def log_weight(self) -> float:
        return -math.log(2 * (self.number + 1) * (self.number + 2))

    def written(self) -> dict[str, object]:
        return {
            "number": self.number,
            "opening": self.opening,
            "at": self.at,
            "limit": self.limit,
            "canary": self.canary.numbers(),
            "stable": self.stable.numbers(),
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known about one rule since one mark: the log evidence `harm` that it is broken, `fit` that it is kept."""

    rule: str
    harm: float
    fit: float
    figures: str


def read_mark(written: object) -> Mark:
    """Raises: KeyError, TypeError, ValueError: it is no mark."""
    if not isinstance(written, Mapping):
        raise TypeError("a mark is a mapping")
    canary, stable = Tally(*map(float, written["canary"])), Tally(*map(float, written["stable"]))
    limit = written["limit"]
    at, limit = float(written["at"]), None if limit is None else int(limit)
    return Mark(int(written["number"]), bool(written["opening"]), at, limit, canary, stable)


def mark(
    options: GuardOptions, number: int, at: float, canary: ArmStatistics, stable: ArmStatistics, *, opening: bool = True
) -> Mark:
    """Counting begins now; `opening` where a step does."""
    limit = None
    if options.latency_ratio is not None and sum(stable.latency) >= _answers_needed(options):
        quantile = latency.quantile_s(stable.latency, options.latency_quantile)
        limit = None if quantile is None else latency.bound_of(quantile * options.latency_ratio)
    return Mark(number, opening, at, limit, tally(options, canary, limit), tally(options, stable, limit))


def tally(options: GuardOptions, arm: ArmStatistics, limit: int | None) -> Tally:
    """All that an arm did in the experiment."""
    over = latency.bound_of(options.max_latency_s) if options.max_latency_s is not None else None
    return Tally(
        requests=max(arm.requests, arm.errors),
        errors=arm.errors,
        answers=sum(arm.latency),
        slow=latency.slower(arm.latency, limit) if limit is not None else 0,
        over=latency.slower(arm.latency, over) if over is not None else 0,
        rewards=arm.rewards,
        reward_sum=arm.reward_sum,
        reward_squares=arm.reward_squares,
    )


def due(marks: Sequence[Mark], canary: ArmStatistics, least: int) -> bool:
    """Whether the canary's requests have grown by a tenth since the last mark, and by `least`."""
    began, last = marks[0].canary.requests, marks[-1].canary.requests
    return canary.requests - last >= max(least, _GROWTH * (canary.requests - began))


def with_mark(marks: Sequence[Mark], new: Mark) -> tuple[Mark, ...]:
    """The marks with one more; the oldest but the first goes where they are too many."""
    return (marks[0], *marks[1:][-(_MARKS - 2) :], new)


def findings(
    options: GuardOptions, since: Mark, canary: ArmStatistics, stable: ArmStatistics, *, fits: bool = True
) -> list[Finding]:
    """One for every rule that is set, in one order; without `fits`, fit is only known where that costs little."""
    one = tally(options, canary, since.limit).since(since.canary)
    other = tally(options, stable, since.limit).since(since.stable)
    found = [*_of_errors(options, since, one, other), *_of_latency(options, since, one, other, stable)]
    return [*found, *_of_rewards(options, one, other, fits=fits)]


def worst(
    options: GuardOptions, marks: Sequence[Mark], canary: ArmStatistics, stable: ArmStatistics
) -> tuple[float, Mark, Finding] | None:
    """The log evidence against the rule that is most likely broken, over all marks, with the mark that tells most."""
    tables = [findings(options, each, canary, stable, fits=False) for each in marks]
    best: tuple[float, Mark, Finding] | None = None
    for at in range(len(tables[0])):
        terms = [table[at].harm + each.log_weight for each, table in zip(marks, tables, strict=True)]
        top = max(terms)
        total = top + math.log(sum(math.exp(term - top) for term in terms)) if top > -math.inf else top
        if best is None or total > best[0]:
            telling = terms.index(top)
            best = total, marks[telling], tables[telling][at]
    return best


def _of_errors(options: GuardOptions, since: Mark, one: Tally, other: Tally) -> list[Finding]:
    found, failed = [], events(one.errors, one.requests, since.canary.errors, since.canary.requests)
    shown = f"error rate {rate(one.errors, one.requests)}"
    if options.error_tolerance is not None:
        beside = events(other.errors, other.requests, since.stable.errors, since.stable.requests)
        harm, fit = _compared(failed, beside, options.error_tolerance)
        allowed = f"(at most {_points(options.error_tolerance)} more)"
        figures = f"{shown}, stable {rate(other.errors, other.requests)} {allowed}"
        found.append(Finding("error_tolerance", harm, fit, figures))
    if options.max_error_rate is not None:
        figures = f"{shown} (at most {percent(options.max_error_rate)})"
        found.append(Finding("max_error_rate", *_alone(failed, options.max_error_rate), figures))
    return found


def _of_latency(options: GuardOptions, since: Mark, one: Tally, other: Tally, stable: ArmStatistics) -> list[Finding]:
    found, beyond = [], 1 - options.latency_quantile
    if options.latency_ratio is not None and since.limit is None:
        figures = f"latency: not judged before {_answers_needed(options)} answers of the stable arm"
        figures += f" (there are {sum(stable.latency):,})"
        found.append(Finding("latency_ratio", -math.inf, -math.inf, figures))
    elif options.latency_ratio is not None and since.limit is not None:
        harm, fit = _compared(
            events(one.slow, one.answers, since.canary.slow, since.canary.answers),
            events(other.slow, other.answers, since.stable.slow, since.stable.answers),
            beyond,
        )
        harm = harm if one.answers >= _LEAST_ANSWERS else -math.inf
        limit = seconds(LATENCY_BOUNDS_S[since.limit])
        figures = f"slower than {limit}: {rate(one.slow, one.answers)}, stable {rate(other.slow, other.answers)}"
        found.append(Finding("latency_ratio", harm, fit, f"{figures} (at most {_points(beyond)} more)"))
    if options.max_latency_s is not None:
        late = events(one.over, one.answers, since.canary.over, since.canary.answers)
        figures = f"slower than {seconds(options.max_latency_s)}: {rate(one.over, one.answers)}"
        harm, fit = _alone(late, beyond)
        harm = harm if one.answers >= _LEAST_ANSWERS else -math.inf
        found.append(Finding("max_latency_s", harm, fit, f"{figures} (at most {percent(beyond)})"))
    return found


def _of_rewards(options: GuardOptions, one: Tally, other: Tally, *, fits: bool) -> list[Finding]:
    if options.reward_tolerance is None and options.min_reward is None:
        return []
    raw = {arm: Sample(known.rewards, known.reward_sum, known.reward_squares) for arm, known in ((0, one), (1, other))}
    samples, alarms = rewards.scaled(raw, options.reward_low, options.reward_high)
    width, found = options.reward_high - options.reward_low, []
    shown = f"mean reward {raw[0].mean:.4g} of {raw[0].count:,.0f}"
    if options.reward_tolerance is not None:
        margin = options.reward_tolerance / width
        harm = log_evidence_greater(samples[1], samples[0], margin)
        fit = log_evidence_greater(samples[0], samples[1], -margin) if fits else -math.inf
        allowed = f"(at most {options.reward_tolerance:g} less)"
        figures = f"{shown}, stable {raw[1].mean:.4g} of {raw[1].count:,.0f} {allowed}"
        found.append(Finding("reward_tolerance", harm, fit, figures))
    if options.min_reward is not None:
        fit, harm = _alone(samples[0], (options.min_reward - options.reward_low) / width)
        found.append(Finding("min_reward", harm, fit, f"{shown} (at least {options.min_reward:g})"))
    if not alarms:
        return found
    unusable = f"rewards are not all between {options.reward_low:g} and {options.reward_high:g}: not judged"
    return [Finding(each.rule, -math.inf, -math.inf, f"{each.figures}; {unusable}") for each in found]


def _alone(sample: Sample, limit: float) -> tuple[float, float]:
    """Log evidence that the mean is above the limit, and that it is below."""
    return log_evidence_above(sample, limit), log_evidence_below(sample, limit)


def _compared(one: Sample, other: Sample, tolerance: float) -> tuple[float, float]:
    """Log evidence that `one` is above `other` by more than the tolerance, and that it is not by as much."""
    return log_evidence_greater(one, other, tolerance), log_evidence_greater(other, one, -tolerance)


def _answers_needed(options: GuardOptions) -> int:
    return math.ceil(_ANSWERS_BEYOND / (1 - options.latency_quantile) - 1e-6)


def _points(share: float) -> str:
    return f"{100 * share:.3g} points"
