"""A canary: the newest revision gets more and more of the requests, step by step, unless it breaks a rule.

Theory of operation. A step lasts at least `step_s` and until the canary has answered `step_requests`. In every step the
rules of `evidence.guards` are judged; a rule that is shown to be broken rolls back at once. After the last step the
canary is promoted: with `promotion: evidence` once every rule that is set is shown to be kept. The chance that a canary
which breaks a rule, if only by a hair, is ever promoted is at most `alpha`.

Where it stands is in the memory: the step, when it began, and the marks from which on is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.fleet import policy_options
from penstock.fleet.evidence import guards, latency
from penstock.fleet.evidence.shares import weights
from penstock.fleet.evidence.words import count, percent, seconds, strength
from penstock.fleet.policy_options import option
from penstock.fleet.state import ArmStatistics
from penstock.fleet.traffic import Arm, Decision, Observation, Verdict

PROMOTIONS = ("evidence", "steps", "manual")

_AWAY_S = 30.0  # a replica that died is back by then; a canary that was away for longer begins its step anew

# The last step begins anew when the canary was not ready for a while, and with it the test for promotion. Each try gets
# a share of alpha that falls by ten; they sum to alpha.
_FIRST_TRY, _NEXT_TRY = math.log(0.9), math.log(0.1)


@dataclass(frozen=True, slots=True)
class Options(guards.GuardOptions):
    steps: tuple[float, ...] = option(
        (0.05, 0.1, 0.25, 0.5), "The canary's share in each step, ascending, above 0 and below 1."
    )
    step_s: float = option(60.0, "The least time of a step.", unit="s", minimum=0)
    step_requests: int = option(100, "The least number of the canary's requests in a step.", minimum=1)
    promotion: str = option(
        "evidence",
        "`evidence`: after the last step, once every rule that is set is shown to be kept; `steps`: after the last "
        "step; `manual`: a person promotes.",
    )
    alpha: float = option(
        0.05, "The chance of a wrong promotion, however often it is looked at.", minimum=1e-9, maximum=0.5
    )
    rollback_alpha: float = option(
        0.05, "The chance of a wrong rollback, over all rules and looks.", minimum=1e-9, maximum=0.5
    )
    patience_s: float | None = option(
        None,
        "How long the last step may wait for evidence; then it is rolled back. Unset: for ever.",
        unit="s",
        minimum=0,
    )

    def __post_init__(self) -> None:
        guards.GuardOptions.__post_init__(self)
        if self.promotion not in PROMOTIONS:
            near = nearest(self.promotion, PROMOTIONS)
            raise InvalidInput(f"promotion is {self.promotion!r}; one of {', '.join(PROMOTIONS)}{near}")
        if not self.steps or any(not 0 < share < 1 for share in self.steps):
            raise InvalidInput(
                f"steps are {_listed(self.steps)}; shares above 0 and below 1, such as 0.05, 0.25, 0.5 "
                "(promotion is what gives it all)"
            )
        if list(self.steps) != sorted(set(self.steps)):
            raise InvalidInput(f"steps are {_listed(self.steps)}; they ascend")
        if self.promotion == "evidence" and not self.rules:
            raise InvalidInput("promotion by evidence needs a rule, such as error_tolerance; or set promotion to steps")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a canary stands. `since` is None while the step has not begun, because the canary is not ready."""

    revision: int
    step: int = 0
    since: float | None = None
    tries: int = 0  # of the last step
    marks: tuple[guards.Mark, ...] = ()
    openings: int = 0  # how many marks of each kind there were
    others: int = 0
    away: float | None = None  # since when it is not ready, while the stable arm is

    def written(self) -> dict[str, object]:
        return {
            "revision": self.revision,
            "step": self.step,
            "since": self.since,
            "tries": self.tries,
            "marks": [each.written() for each in self.marks],
            "openings": self.openings,
            "others": self.others,
            "away": self.away,
        }


class Canary:
    name = "canary"
    logged = True

    def options(self, given: Mapping[str, object]) -> Options:
        return policy_options.read(Options, given, "traffic policy canary")

    def decide(self, options: Options, observed: Observation) -> Decision:
        revisions = [arm.revision for arm in observed.arms]
        others = [arm for arm in observed.arms if arm.revision != observed.stable]
        if not others or observed.stable not in revisions:
            whole = observed.stable if observed.stable in revisions else max(revisions)
            alone = f"all to revision {whole}; there is no canary"
            return Decision(weights(revisions, {whole: 1.0}), explanation=alone)
        canary = max(others, key=lambda arm: arm.revision)
        stable = next(arm for arm in observed.arms if arm.revision == observed.stable)
        ended = _ended(observed.memory, canary.revision)
        if ended is not None:
            return _end(observed, ended)
        progress = _read(observed.memory, canary.revision, len(options.steps))
        if not canary.ready:
            return _away(options, progress, observed, canary, stable)
        if progress.away is not None and observed.now - progress.away > _AWAY_S:
            progress = replace(progress, since=None)
        progress = replace(progress, away=None)
        progress = _counted(options, progress, observed.now, canary.statistics, stable.statistics)
        verdict = _broken(options, progress, observed.now, canary, stable)
        explanation = ""
        if verdict is None:
            progress, verdict, explanation = _advance(options, progress, observed.now, canary, stable)
        if verdict is not None:
            return _end(observed, verdict)
        share = options.steps[progress.step]
        made = weights(revisions, {canary.revision: share, stable.revision: 1 - share})
        return Decision(made, progress.written(), explanation=explanation)


def _away(options: Options, progress: Progress, observed: Observation, canary: Arm, stable: Arm) -> Decision:
    """The canary is not ready. What it did so far still counts: dying again and again is no way around the rules.

    With the stable arm it sleeps, and goes on when both are awake.
    """
    verdict = _broken(options, progress, observed.now, canary, stable) if progress.marks else None
    if verdict is not None:
        return _end(observed, verdict)
    if stable.ready and progress.away is None:
        progress = replace(progress, away=observed.now)
    made = weights([arm.revision for arm in observed.arms], {stable.revision: 1.0})
    goes_on = "begins" if progress.since is None else "goes on"
    explanation = f"canary revision {canary.revision} is not ready; step {progress.step + 1} {goes_on} when it is"
    return Decision(made, progress.written(), explanation=explanation)


def _end(observed: Observation, verdict: Verdict) -> Decision:
    revisions = [arm.revision for arm in observed.arms]
    whole = verdict.revision if verdict.promote else observed.stable
    ready = {arm.revision: arm.ready for arm in observed.arms}
    made = weights(revisions, {whole if ready[whole] else observed.stable: 1.0})
    memory = {"verdict": {"revision": verdict.revision, "promote": verdict.promote, "reason": verdict.reason}}
    return Decision(made, memory, verdict, explanation=verdict.reason)


def _ended(memory: Mapping[str, object], revision: int) -> Verdict | None:
    """A verdict that was given before, and that nobody has acted upon yet."""
    written = memory.get("verdict")
    if not isinstance(written, Mapping) or written.get("revision") != revision:
        return None
    return Verdict(revision, bool(written.get("promote")), str(written.get("reason", "")))


def _read(memory: Mapping[str, object], revision: int, steps: int) -> Progress:
    """The progress that was remembered, or a new one where there is none of this revision."""
    try:
        if memory["revision"] != revision:
            return Progress(revision)
        marks, since = memory["marks"], memory["since"]
        if not isinstance(marks, Sequence):
            return Progress(revision)
        step, tries, openings, others = (int(str(memory[name])) for name in ("step", "tries", "openings", "others"))
        return Progress(
            revision,
            min(max(step, 0), steps - 1),
            float(str(since)) if since is not None and marks else None,
            tries,
            tuple(guards.read_mark(each) for each in marks),
            openings,
            others,
            float(str(memory["away"])) if memory["away"] is not None else None,
        )
    except (KeyError, TypeError, ValueError):
        return Progress(revision)


def _begun(options: Options, progress: Progress, now: float, canary: ArmStatistics, stable: ArmStatistics) -> Progress:
    """The step begins now, and counting with it."""
    first = guards.mark(options, progress.openings, now, canary, stable)
    tries = progress.tries + (progress.step == len(options.steps) - 1)
    return replace(progress, since=now, marks=(first,), openings=first.number + 1, tries=tries)


def _counted(
    options: Options, progress: Progress, now: float, canary: ArmStatistics, stable: ArmStatistics
) -> Progress:
    """The progress with marks as they are due."""
    if progress.since is None or not progress.marks:
        return _begun(options, progress, now, canary, stable)
    if options.latency_ratio is not None and progress.marks[0].limit is None:
        fresh = guards.mark(options, progress.openings, now, canary, stable)
        if fresh.limit is not None:  # from here on latency can be judged; no promotion was possible before
            return replace(progress, marks=(fresh,), openings=fresh.number + 1)
    if not guards.due(progress.marks, canary, options.step_requests):
        return progress
    new = guards.mark(options, progress.others, now, canary, stable, opening=False)
    return replace(progress, marks=guards.with_mark(progress.marks, new), others=new.number + 1)


def _broken(options: Options, progress: Progress, now: float, canary: Arm, stable: Arm) -> Verdict | None:
    found = guards.worst(options, progress.marks, canary.statistics, stable.statistics) if options.rules else None
    needed = math.log(options.rules / options.rollback_alpha) if options.rules else math.inf
    if found is None or found[0] < needed:
        return None
    evidence, since, finding = found
    reason = (
        f"rolled back in {_place(options, progress)}: {finding.figures}, in the last {seconds(now - since.at)}; "
        f"breaks {finding.rule}, evidence {strength(evidence)} of {strength(needed)}"
    )
    return Verdict(canary.revision, False, reason)


def _advance(
    options: Options, progress: Progress, now: float, canary: Arm, stable: Arm
) -> tuple[Progress, Verdict | None, str]:
    """The next step, the end, or what is waited for."""
    since = now if progress.since is None else progress.since
    found = guards.findings(options, progress.marks[0], canary.statistics, stable.statistics)
    figures = "; ".join([each.figures for each in found] + _quantiles(options, canary, stable))
    answered = canary.statistics.requests - _requests_before(progress)
    missing = []
    if now - since < options.step_s:
        missing.append(f"{seconds(options.step_s - (now - since))} more")
    if answered < options.step_requests:
        missing.append(f"{count(options.step_requests - answered)} more requests")
    place = f"{_place(options, progress)}: {figures}"
    if missing:
        return progress, None, f"{place}; the step takes {' and '.join(missing)}"
    if progress.step < len(options.steps) - 1:
        begun = _begun(options, replace(progress, step=progress.step + 1), now, canary.statistics, stable.statistics)
        return begun, None, f"{_place(options, begun)} begins; {_place(options, progress)} ended with {figures}"
    if options.promotion == "steps":
        return progress, Verdict(canary.revision, True, f"promoted after {len(options.steps)} steps: {figures}"), ""
    if options.promotion == "manual":
        return progress, None, f"{place}; waits for a person to promote it"
    needed = math.log(1 / options.alpha) - _FIRST_TRY - _NEXT_TRY * (max(progress.tries, 1) - 1)
    least = min(each.fit for each in found)
    if least >= needed:
        shown = "; ".join(each.figures for each in found)
        reason = f"promoted after {len(options.steps)} steps: {shown}; evidence {strength(least)} of {strength(needed)}"
        return progress, Verdict(canary.revision, True, reason), ""
    lacking = ", ".join(
        f"{each.rule} {strength(max(each.fit, 0.0))} of {strength(needed)}" for each in found if each.fit < needed
    )
    if options.patience_s is not None and now - since > options.patience_s:
        waited = seconds(options.patience_s)
        reason = f"rolled back: not shown to be good enough within {waited}: {figures}; evidence {lacking}"
        return progress, Verdict(canary.revision, False, reason), ""
    return progress, None, f"{place}; waits for evidence: {lacking}"


def _requests_before(progress: Progress) -> float:
    return progress.marks[0].canary.requests


def _quantiles(options: Options, canary: Arm, stable: Arm) -> list[str]:
    name = f"p{100 * options.latency_quantile:g}"
    pair = [latency.quantile_s(arm.statistics.latency, options.latency_quantile) for arm in (canary, stable)]
    if pair[0] is None or pair[1] is None:
        return []
    return [f"{name} {seconds(pair[0])}, stable {seconds(pair[1])}"]


def _place(options: Options, progress: Progress) -> str:
    share = percent(options.steps[progress.step])
    return f"step {progress.step + 1} of {len(options.steps)} ({share} to revision {progress.revision})"


def _listed(steps: Sequence[float]) -> str:
    return ", ".join(f"{share:g}" for share in steps) or "none"


plug = Canary()
