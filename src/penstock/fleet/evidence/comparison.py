"""How the answers of a shadow differ from the real ones: sums that add up, and the report made of them.

A document is the JSON text of sums over pairs of answers. `merge` adds two, in any order, so that each router keeps its
own and the store their sum. It does not grow with the number of pairs: counts, histograms, and the few worst examples.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.fleet.evidence.differences import Difference
from penstock.fleet.state import LATENCY_BOUNDS_S

EXAMPLES = 5
_STATUSES = 32  # pairs told apart; the rest is "other"
_BUCKETS = len(LATENCY_BOUNDS_S) + 1
_COUNTS = ("compared", "outputs", "equal", "unlike", "values", "ranked", "agreed", "behind", "too_large", "failed")
_LARGEST = ("max_abs", "max_rel")
_HISTOGRAMS = ("real", "shadow", "slower", "faster")


@dataclass(slots=True)
class Comparison:
    """Sums over pairs of answers, which grow as they come."""

    # compared: pairs with both answers; outputs: those where both succeeded and bodies were looked at; equal: bodies
    # equal within the tolerance; unlike: bodies that cannot be subtracted (other shape, keys or type); values: numbers
    # compared; ranked, agreed: rows that are scores, and those whose largest is the same. Not compared: behind (too
    # many copies under way), too_large, failed (the shadow gave no answer).
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    largest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_LARGEST, 0.0))
    statuses: dict[str, int] = field(default_factory=dict)  # "200/500": the real one first
    # Counts per LATENCY_BOUNDS_S: of both, and of the difference where the shadow is slower or not.
    histograms: dict[str, list[int]] = field(default_factory=lambda: {name: [0] * _BUCKETS for name in _HISTOGRAMS})
    examples: list[dict[str, object]] = field(default_factory=list)  # worst first

    def skip(self, why: str) -> None:
        """Counts a copy that was not compared: `behind`, `too_large` or `failed`."""
        self.counts[why] += 1

    def pair(self, statuses: tuple[int, int], seconds: tuple[float, float]) -> None:
        """Takes the statuses and latencies of two answers, the real one's first."""
        self.counts["compared"] += 1
        _add_bounded(self.statuses, f"{statuses[0]}/{statuses[1]}", 1)
        late = seconds[1] - seconds[0]
        for name, value in (
            ("real", seconds[0]), ("shadow", seconds[1]), ("slower" if late > 0 else "faster", abs(late)),
        ):  # fmt: skip
            self.histograms[name][bisect_left(LATENCY_BOUNDS_S, value)] += 1

    def outputs(self, difference: Difference) -> None:
        """Takes the difference of two bodies."""
        self.counts["outputs"] += 1
        self.counts["equal"] += difference.equal
        self.counts["unlike"] += bool(difference.unlike)
        self.counts["values"] += difference.values
        self.counts["ranked"] += difference.ranked
        self.counts["agreed"] += difference.agreed
        self.largest["max_abs"] = max(self.largest["max_abs"], difference.max_abs)
        self.largest["max_rel"] = max(self.largest["max_rel"], difference.max_rel)

    def example(self, badness: float, example: Mapping[str, object]) -> None:
        """Keeps an example while it is among the worst. Its values are short texts and numbers."""
        self.examples = _worst([*self.examples, {**example, "badness": badness}])

    def worth_an_example(self, badness: float) -> bool:
        return len(self.examples) < EXAMPLES or badness > _badness(self.examples[-1])

    def document(self) -> str:
        return json.dumps(
            {
                "counts": self.counts, "largest": self.largest, "statuses": self.statuses,
                "histograms": self.histograms, "examples": self.examples,
            }
        )  # fmt: skip


def read(document: str) -> Comparison:
    """The sums of a document; of an empty one, none."""
    sums = Comparison()
    if document:
        found = json.loads(document)
        sums.counts.update({name: int(found["counts"].get(name, 0)) for name in _COUNTS})
        sums.largest.update({name: float(found["largest"].get(name, 0.0)) for name in _LARGEST})
        sums.statuses = {str(pair): int(n) for pair, n in found["statuses"].items()}
        sums.histograms.update({name: [int(n) for n in found["histograms"][name]] for name in _HISTOGRAMS})
        sums.examples = list(found["examples"])
    return sums


def merge(one: str, other: str) -> str:
    """The document of all pairs of both."""
    total, more = read(one), read(other)
    for name in _COUNTS:
        total.counts[name] += more.counts[name]
    for name in _LARGEST:
        total.largest[name] = max(total.largest[name], more.largest[name])
    for pair, n in more.statuses.items():
        _add_bounded(total.statuses, pair, n)
    for name in _HISTOGRAMS:
        total.histograms[name] = [a + b for a, b in zip(total.histograms[name], more.histograms[name], strict=True)]
    total.examples = _worst([*total.examples, *more.examples])
    return total.document()


def report(document: str) -> dict[str, object]:
    """What people read: shares and quantiles. A figure of nothing is None. Times are in milliseconds."""
    sums = read(document)
    counts = sums.counts
    same = sum(n for pair, n in sums.statuses.items() if len(set(pair.split("/"))) == 1)
    late = [*reversed(sums.histograms["faster"]), *sums.histograms["slower"]]
    edges = [*(-bound for bound in reversed(LATENCY_BOUNDS_S)), 0.0, *LATENCY_BOUNDS_S, LATENCY_BOUNDS_S[-1]]
    return {
        "compared": counts["compared"],
        "not_compared": {name: counts[name] for name in ("behind", "too_large", "failed")},
        "status": {"equal": same, "equal_share": _share(same, counts["compared"]), "pairs": sums.statuses},
        "latency_ms": {
            "real": _quantiles(sums.histograms["real"], LATENCY_BOUNDS_S),
            "shadow": _quantiles(sums.histograms["shadow"], LATENCY_BOUNDS_S),
            "difference": _quantiles(late, edges),
        },
        "outputs": {
            "compared": counts["outputs"],
            "equal": counts["equal"],
            "equal_share": _share(counts["equal"], counts["outputs"]),
            "unlike": counts["unlike"],
            "values": counts["values"],
            "max_abs_difference": sums.largest["max_abs"] if counts["values"] else None,
            "max_rel_difference": sums.largest["max_rel"] if counts["values"] else None,
            "ranked": counts["ranked"],
            "top_agreement": _share(counts["agreed"], counts["ranked"]),
        },
        "examples": sums.examples,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _quantiles(counts: Sequence[int], upper: Sequence[float]) -> dict[str, float | None]:
    """The upper bound of the bucket that holds each quantile; the largest finite one where it lies beyond."""
    total, found = sum(counts), {}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        seen, at = 0, None
        for bucket, n in enumerate(counts):
            seen += n
            if total and seen >= share * total:
                at = upper[min(bucket, len(upper) - 1)] * 1e3
                break
        found[name] = at
    return found


def _add_bounded(counts: dict[str, int], key: str, n: int) -> None:
    if key not in counts and len(counts) >= _STATUSES:
        key = "other"
    counts[key] = counts.get(key, 0) + n


def _badness(example: Mapping[str, object]) -> float:
    value = example.get("badness")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _worst(examples: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    return sorted(examples, key=_badness, reverse=True)[:EXAMPLES]
