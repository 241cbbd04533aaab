"""Shares of arms as weights: for every revision, between 0 and 1, with a sum of 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def eligible(arms: Iterable[tuple[int, bool]], stable: int) -> list[int]:
    """The revisions that may get requests: those that are ready, or the stable one alone when none is.

    `arms` are pairs of revision and ready, of which there is at least one.
    """
    pairs = list(arms)
    ready = [revision for revision, is_ready in pairs if is_ready]
    if ready:
        return ready
    known = [revision for revision, _ in pairs]
    return [stable] if stable in known else known[:1]


def weights(revisions: Iterable[int], shares: Mapping[int, float], floor: float = 0.0) -> dict[int, float]:
    """Weights of `revisions`: 0 for those without a share, the others in proportion, none of them below `floor`.

    A floor of more than an equal share is an equal share.
    """
    total = sum(shares.values())
    least = min(floor, 1.0 / len(shares))
    rest = 1.0 - least * len(shares)
    made = dict.fromkeys(revisions, 0.0)
    for revision, share in shares.items():
        made[revision] = least + rest * (share / total if total > 0 else 1.0 / len(shares))
    # What rounding left over goes to the largest, so that the sum is 1 as exactly as floats can say it.
    largest = max(made, key=lambda revision: made[revision])
    made[largest] += 1.0 - sum(made.values())
    return made


def trying(known: Mapping[int, float], untried: Sequence[int]) -> dict[int, float]:
    """Shares in which every untried arm has an equal one, and the others divide the rest as `known` says.

    Theory wants an arm that was never tried to be tried at once. But an arm may stay without rewards for other reasons
    (they come late, its feedback is broken), and must not draw all requests to itself meanwhile.
    """
    number = len(known) + len(untried)
    left, total = 1.0 - len(untried) / number, sum(known.values())
    shares = dict.fromkeys(untried, 1.0 / number)
    return shares | {revision: left * share / total for revision, share in known.items()}
