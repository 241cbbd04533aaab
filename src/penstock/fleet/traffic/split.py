"""Fixed shares, and what an A/B test needs: an alarm when requests do not arrive in these shares, and an end by
evidence.

Source: Fabijan et al., Diagnosing sample ratio mismatch in online controlled experiments (KDD 2019), for why a
comparison with the wrong shares is worth nothing. The tests are those of `evidence.sample_ratio` and
`evidence.sequential`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.fleet import policy_options
from penstock.fleet.evidence import rewards, sample_ratio
from penstock.fleet.evidence.sequential import Sample, confidence_bounds, events, log_evidence_greater
from penstock.fleet.evidence.shares import eligible, weights
from penstock.fleet.evidence.words import count, percent, strength
from penstock.fleet.policy_options import option
from penstock.fleet.traffic import Decision, Observation, Verdict

DECIDE_BY = ("nothing", "reward", "error_rate")
STABLE, NEWEST = "stable", "newest"


@dataclass(frozen=True, slots=True)
class Options(rewards.RewardOptions):
    weights: Mapping[str, float] | None = option(
        None,
        "Shares by revision, in any unit: `{1: 90, 2: 10}`; `stable` and `newest` are revisions too. "
        "Revisions that are not named get nothing; unset, all get the same.",
    )
    decide_by: str = option(
        "nothing", "`reward` or `error_rate`: ends the experiment once one arm is shown to be better; `nothing`: never."
    )
    alpha: float = option(
        0.05, "The chance of a wrong promotion, however often it is looked at.", minimum=1e-9, maximum=0.5
    )
    effect: float = option(0.0, "By how much an arm has to be better, as a share.", minimum=0, maximum=1)
    ratio_alpha: float = option(
        0.001, "The chance of a sample-ratio alarm without a reason; 0 switches it off.", minimum=0, maximum=0.5
    )
    settle_s: float = option(
        15.0, "After a change of shares, requests are not counted for so long.", unit="s", minimum=0
    )
    requests_per_user: float = option(
        1.0, "With sticky users: how many requests one user sends. Evidence counts users, not requests.", minimum=1
    )

    def __post_init__(self) -> None:
        rewards.RewardOptions.__post_init__(self)
        if self.decide_by not in DECIDE_BY:
            near = nearest(self.decide_by, DECIDE_BY)
            raise InvalidInput(f"decide_by is {self.decide_by!r}; one of {', '.join(DECIDE_BY)}{near}")
        if self.weights is None:
            return
        for name, share in self.weights.items():
            if not (name.isdecimal() or name in (STABLE, NEWEST)):
                near = nearest(name, (STABLE, NEWEST))
                raise InvalidInput(f"weights name {name!r}; a revision's number, {STABLE} or {NEWEST}{near}")
            if not 0 <= share < math.inf:
                raise InvalidInput(f"the weight of {name} is {share:g}; it is at least 0")
        if not sum(self.weights.values()) > 0:
            raise InvalidInput("weights are all 0; at least one is above")


class Split:
    name = "split"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        text_keys = given.get("weights")
        if isinstance(text_keys, Mapping):  # in YAML, 1: 90 has a number as its key
            given = {**given, "weights": {str(key): value for key, value in text_keys.items()}}
        return policy_options.read(Options, given, "traffic policy split")

    def decide(self, options: Options, observed: Observation) -> Decision:
        revisions = [arm.revision for arm in observed.arms]
        ready = eligible(((arm.revision, arm.ready) for arm in observed.arms), observed.stable)
        wished = _wished(options, revisions, observed.stable)
        shares = {revision: share for revision, share in wished.items() if revision in ready and share > 0}
        made = weights(revisions, shares or {_fallback(ready, observed.stable): 1.0})
        mismatch, memory = _mismatch(options, observed, made)
        told, verdict = _compared(options, observed, [one for one in shares if one != observed.stable])
        if mismatch and verdict is not None:
            told, verdict = f"{told}; nothing is decided with a sample-ratio mismatch", None
        arrived = ", ".join(f"revision {revision} {percent(weight)}" for revision, weight in made.items())
        away = [str(one) for one, share in wished.items() if share > 0 and one not in ready]
        if away:
            arrived += f"; not ready: {', '.join(away)}"
        if verdict is not None and verdict.promote:
            made = weights(revisions, {verdict.revision: 1.0})
        elif verdict is not None:
            made = weights(revisions, {one: share for one, share in shares.items() if one != verdict.revision} or made)
        alarms = (mismatch,) if mismatch else ()
        return Decision(made, memory, verdict, alarms, "; ".join(filter(None, (arrived, told))))


def _wished(options: Options, revisions: list[int], stable: int) -> dict[int, float]:
    if options.weights is None:
        return dict.fromkeys(revisions, 1.0)
    wished = dict.fromkeys(revisions, 0.0)
    for name, share in options.weights.items():
        revision = stable if name == STABLE else max(revisions) if name == NEWEST else int(name)
        if revision in wished:
            wished[revision] += share
    return wished


def _fallback(ready: list[int], stable: int) -> int:
    return stable if stable in ready else ready[0]


def _mismatch(options: Options, observed: Observation, made: Mapping[int, float]) -> tuple[str, dict[str, object]]:
    """The alarm's text or "", and what to remember: counting begins anew when shares change."""
    shares = {str(revision): weight for revision, weight in made.items()}
    now = {str(arm.revision): float(arm.statistics.requests) for arm in observed.arms}
    memory = dict(observed.memory)
    if memory.get("shares") != shares:
        memory = {"shares": shares, "since": observed.now}
    before = memory.get("counts")
    if not isinstance(before, Mapping):
        since = memory.get("since")
        if isinstance(since, (int, float)) and observed.now - since >= options.settle_s:
            memory["counts"] = now
        return "", memory
    drawn = [revision for revision, weight in shares.items() if weight > 0]
    if len(drawn) < 2 or options.ratio_alpha == 0:
        return "", memory
    counts = [max(now[revision] - float(before.get(revision, 0.0)), 0.0) for revision in drawn]
    evidence = sample_ratio.log_evidence(
        [number / options.requests_per_user for number in counts], [shares[revision] for revision in drawn]
    )
    if evidence < -math.log(options.ratio_alpha) and not memory.get("mismatch"):
        return "", memory
    total = sum(counts)
    parts = ", ".join(
        f"revision {revision} {count(number)} ({percent(number / total) if total else '0 %'}, "
        f"should be {percent(shares[revision])})"
        for revision, number in zip(drawn, counts, strict=True)
    )
    memory["mismatch"] = True  # until the shares change: what was counted stays wrong
    return f"sample-ratio mismatch: {parts}; arms cannot be compared", memory


def _compared(options: Options, observed: Observation, challengers: list[int]) -> tuple[str, Verdict | None]:
    """What is known of each challenger beside the stable arm, and a verdict once it suffices."""
    if options.decide_by == "nothing" or not challengers:
        return "", None
    statistics = {arm.revision: arm.statistics for arm in observed.arms}
    samples: dict[int, Sample]
    if options.decide_by == "reward":
        samples, alarms = rewards.of_arms(statistics, options)
        if alarms:
            return "; ".join(alarms), None
    else:
        samples = {one: events(known.errors, max(known.requests, known.errors)) for one, known in statistics.items()}
    samples = {one: sample.thinned(options.requests_per_user) for one, sample in samples.items()}
    if observed.stable not in samples:
        return "", None
    stable, needed = samples[observed.stable], math.log(len(challengers) / options.alpha)
    lines = []
    for one in challengers:
        a, b = samples[one], stable
        if options.decide_by == "error_rate":
            a, b = b, a  # fewer is better
        better, worse = log_evidence_greater(a, b, options.effect), log_evidence_greater(b, a, options.effect)
        figures = f"revision {one} {_figures(options, samples[one])}, stable {_figures(options, stable)}"
        if max(better, worse) >= needed:
            shown = "better" if better > worse else "worse"
            reason = f"shown to be {shown} by {options.decide_by}: {figures}; evidence {strength(max(better, worse))}, "
            reason += f"needed {strength(needed)}"
            return reason, Verdict(one, better > worse, reason)
        lines.append(f"{figures}; evidence {strength(max(better, worse, 0.0))} of {strength(needed)}")
    return "; ".join(lines), None


def _figures(options: Options, sample: Sample) -> str:
    low, high = confidence_bounds(sample, options.alpha)
    if options.decide_by == "error_rate":
        return f"fails {percent(sample.mean)} ({percent(low)} to {percent(high)}) of {count(sample.count)}"
    width = options.reward_high - options.reward_low
    mean, least, most = (options.reward_low + width * value for value in (sample.mean, low, high))
    return f"earns {mean:.4g} ({least:.4g} to {most:.4g}) in {count(sample.count)}"


plug = Split()
