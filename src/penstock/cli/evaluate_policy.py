"""`penstock evaluate-policy`: what another policy would have earned, from the decision log of one that ran."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from penstock.cli.command import Command
from penstock.cli.output import print_json, print_table
from penstock.cli.platform import Address, AsJson, connect, pairs
from penstock.core.coercion import parameter
from penstock.core.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from penstock.fleet.evidence.off_policy import Estimate, Evaluation, Log
    from penstock.fleet.store.batch import LoggedDecision
    from penstock.fleet.traffic import Policy

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_TRAFFIC = "penstock.fleet.traffic"
_ESTIMATORS = ("ips", "snips", "dr")


@dataclass(frozen=True, slots=True)
class _Judged:
    """A policy as it was named: fixed weights by revision, a traffic plug, or neither for the uniform one."""

    name: str
    weights: Mapping[int, float] | None = None
    plug: Policy | None = None


@app.command(cls=Command)
def evaluate_policy(
    source: Annotated[
        str, typer.Argument(metavar="LOG", help="A file of JSON lines, - for standard input, or a deployment's name.")
    ],
    policy: Annotated[
        list[str],
        typer.Option(
            metavar="POLICY",
            help="uniform, revision:N, weights:1=90,2=10, or a traffic policy such as thompson. May be repeated.",
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the traffic policies. May be repeated."),
    ] = None,
    every: Annotated[
        int, typer.Option(metavar="NUMBER", help="A traffic policy decides anew each so many decisions.", min=1)
    ] = 100,
    stable: Annotated[
        int | None, typer.Option(metavar="N", help="The stable revision of traffic policies; else the lowest.")
    ] = None,
    experiment: Annotated[
        int | None, typer.Option(metavar="ID", help="The experiment; else the last one in the log.")
    ] = None,
    since: Annotated[float, typer.Option(metavar="TIME", help="Decisions from then on, in seconds of the epoch.")] = 0,
    limit: Annotated[int, typer.Option(metavar="NUMBER", help="At most so many decisions.", min=2)] = 1_000_000,
    unrewarded: Annotated[
        str,
        typer.Option(metavar="drop|zero", help="What a decision without a reward is: left out, or a reward of 0."),
    ] = "drop",
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(metavar="NUMBER", help="Of the bootstrap.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of folds and bootstrap.", min=0)] = 0,
    as_json: AsJson = False,
    fleet: Address = None,
) -> None:
    """Estimates what a policy would earn per decision, from a log of decisions with propensities and rewards.

    ips is unbiased and wide, snips is steadier, dr uses a model of the rewards too; where they disagree, trust none.
    The row `logged` is what was earned. A traffic policy learns along the log, from what was known by each decision.
    """
    if unrewarded not in ("drop", "zero"):
        raise InvalidInput(f"--unrewarded is {unrewarded!r}; write drop or zero")
    judged = [_judged(name) for name in policy]
    options = {key: parameter(value) for key, value in pairs(option, "--option").items()}
    log = _experiment(list(_decisions(source, fleet, since, limit)), source, experiment)
    kept = [place for place, one in enumerate(log) if one.reward is not None or unrewarded == "zero"]
    if len(kept) < 2:
        raise InvalidInput(f"the log has {len(log):,} decisions, and {len(kept)} of them have a reward; 2 are needed")
    seen = sorted({one.decision.revision for one in log})
    asked = {revision for one in judged for revision in one.weights or ()}
    arms = sorted({*seen, *asked})
    table = _table([log[place] for place in kept], arms)
    found = {}
    for one in judged:
        chances = _chances(one, options, log, seen, arms, stable, every)[kept]
        found[one.name] = _evaluate(table, chances, seed, confidence, resamples)
    if as_json:
        head = {"experiment": log[0].decision.experiment, "arms": arms, "decisions": len(log), "used": len(kept)}
        print_json({**head, "confidence": confidence, "policies": {name: asdict(one) for name, one in found.items()}})
    else:
        print_table(list(_rows(found)), right=["reward", "± error", "low", "high", "bootstrap low", "bootstrap high"])
        _warn(log, len(kept), found)


def _judged(name: str) -> _Judged:
    """Raises: InvalidInput, NotFound: there is no such policy."""
    from penstock import plugins

    kind, colon, rest = name.partition(":")
    if name == "uniform":
        return _Judged(name)
    try:
        if kind == "revision" and colon:
            return _Judged(name, {int(rest): 1.0})
        if kind == "weights" and colon:
            weights = {int(key): float(share) for key, share in pairs(rest.split(","), "weights:").items()}
            if min(weights.values()) < 0 or not 0 < sum(weights.values()) < float("inf"):
                raise InvalidInput(f"{name}: shares are at least 0, and one is above")
            return _Judged(name, {key: share / sum(weights.values()) for key, share in weights.items()})
    except ValueError:
        raise InvalidInput(f"{name}: write revision:2 or weights:1=90,2=10") from None
    try:
        return _Judged(name, plug=cast("Policy", plugins.load(_TRAFFIC, name)))
    except NotFound:
        known = ", ".join(plugins.names(_TRAFFIC))
        raise NotFound(f"there is no policy {name!r}: uniform, revision:N, weights:1=90,2=10, {known}") from None


def _decisions(source: str, fleet: str | None, since: float, limit: int) -> Iterator[LoggedDecision]:
    from penstock.fleet.feedback import lines

    if source == "-":
        found = lines.read(sys.stdin.buffer)
    elif Path(source).is_file():
        found = lines.read(Path(source).read_bytes().splitlines())
    elif "/" in source or source.endswith((".json", ".jsonl")):
        raise NotFound(f"there is no file {source}")
    else:
        found = lines.read_documents(connect(fleet).decisions(source, since=since, limit=limit))
    number = 0
    for one in found:
        if one.decision.at >= since:
            yield one
            number += 1
            if number == limit:
                return


def _experiment(log: list[LoggedDecision], source: str, wanted: int | None) -> list[LoggedDecision]:
    """The decisions of one experiment, in the order of time."""
    if not log:
        raise NotFound(f"{source}: there are no decisions in the log")
    log.sort(key=lambda one: one.decision.at)
    chosen = log[-1].decision.experiment if wanted is None else wanted
    found = [one for one in log if one.decision.experiment == chosen]
    if not found:
        known = sorted({one.decision.experiment for one in log})
        raise NotFound(f"{source}: no experiment {chosen} in the log; there are {', '.join(map(str, known))}")
    return found


def _table(log: Sequence[LoggedDecision], arms: Sequence[int]) -> Log:
    import numpy as np

    from penstock.fleet.evidence.off_policy import Log

    place = {revision: index for index, revision in enumerate(arms)}
    sizes = {len(one.decision.context) for one in log}
    return Log(
        np.array([place[one.decision.revision] for one in log]),
        np.array([0.0 if one.reward is None else one.reward for one in log]),
        np.array([one.decision.propensity for one in log]),
        len(arms),
        np.array([one.decision.context for one in log]) if len(sizes) == 1 and sizes != {0} else None,
    )


def _chances(
    judged: _Judged, options: Mapping[str, object], log: Sequence[LoggedDecision], seen: Sequence[int],
    arms: Sequence[int], stable: int | None, every: int,
) -> NDArray[float64]:  # fmt: skip
    """The probability of each of `arms` at each decision."""
    import numpy as np

    from penstock.fleet.feedback.replay import replay

    if judged.plug is not None:
        first = seen[0] if stable is None else stable
        if first not in seen:
            raise InvalidInput(f"--stable is {first}; the log has {', '.join(map(str, seen))}")
        ordered = [first, *(arm for arm in seen if arm != first)]
        chances = np.zeros((len(log), len(arms)))
        chances[:, [arms.index(arm) for arm in ordered]] = replay(
            judged.plug, options, log, ordered, first, every=every
        )
        return chances
    weights = judged.weights or dict.fromkeys(seen, 1 / len(seen))
    return np.tile([weights.get(arm, 0.0) for arm in arms], (len(log), 1))


def _evaluate(table: Log, chances: NDArray[float64], seed: int, confidence: float, resamples: int) -> Evaluation:
    import numpy as np

    from penstock.fleet.evidence.off_policy import evaluate

    # The same seed for each policy: differences between them are not those of their draws.
    return evaluate(table, chances, np.random.default_rng(seed), confidence=confidence, resamples=resamples)


def _rows(found: Mapping[str, Evaluation]) -> Iterator[dict[str, object]]:
    first = next(iter(found.values()))
    yield _row("logged", "", first.logged, first.decisions)
    for name, one in found.items():
        for estimator in _ESTIMATORS:
            yield _row(name, estimator, getattr(one, estimator), one.effective_sample_size)


def _row(policy: str, estimator: str, estimate: Estimate, decisions: float) -> dict[str, object]:
    shown = {
        "reward": estimate.value, "± error": estimate.standard_error, "low": estimate.low, "high": estimate.high,
        "bootstrap low": estimate.bootstrap_low, "bootstrap high": estimate.bootstrap_high,
    }  # fmt: skip
    figures = {key: f"{value:.4g}" for key, value in shown.items()}
    return {"policy": policy, "estimator": estimator, **figures, "worth decisions": f"{decisions:,.0f}"}


def _warn(log: Sequence[LoggedDecision], used: int, found: Mapping[str, Evaluation]) -> None:
    warnings = [f"{name}: {warning}" for name, one in found.items() for warning in one.warnings]
    if used < len(log):
        warnings.insert(
            0,
            f"{len(log) - used:,} of {len(log):,} decisions have no reward and are left out; where none means "
            "nothing gained, say --unrewarded zero",
        )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
