"""Judges a finished run: a pure function of the book and of what the server counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.ledger import book
from penstock.ledger.book import Entry
from penstock.ledger.counters import Counters
from penstock.ledger.schedule import Plan


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, how often, and one example."""

    kind: str
    count: int
    example: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.count:,}, such as {self.example}"


def check(
    entries: Sequence[Entry],
    plan: Plan,
    before: Counters | None = None,
    after: Counters | None = None,
    *,
    on_time: bool = True,
) -> list[Violation]:
    """The broken rules; none is a pass.

    - lost: a request without an outcome. doubled: one with several.
    - crossed: a success that is not this request's.
    - late: an answer, other than that it is too late, after deadline and slack. Not judged when the generator itself
      was not `on_time`: it then reads answers late too.
    - untruthful: an outcome that the plan does not allow; a word of a passed deadline before it has passed.
    - useless: not one right answer.
    - unsent: requests that the generator itself could not send.
    - miscounted: the server's successes are not those that its callers saw. A caller that left or was cut off may or
      may not have been answered.
    """
    late_s = plan.deadline_s + plan.slack_s
    rules: list[tuple[str, Callable[[Entry], bool]]] = [
        ("lost", lambda entry: entry.outcome in (None, book.LOST)),
        ("doubled", lambda entry: entry.ends > 1 and entry.outcome not in (book.LEFT, book.LOST, book.UNSENT)),
        ("crossed", lambda entry: bool(entry.crossed)),
        ("late", lambda entry: on_time and entry.outcome in _ANSWERS and entry.latency_s > late_s),
        (
            "untruthful",
            lambda entry: (
                (entry.outcome not in plan.allowed and entry.outcome not in (None, book.LOST, book.UNSENT))
                or (entry.outcome == book.DEADLINE and entry.latency_s < plan.deadline_s - plan.slack_s)
            ),
        ),
        ("unsent", lambda entry: entry.outcome == book.UNSENT),
    ]
    violations = []
    for kind, broken in rules:
        found = [entry for entry in entries if broken(entry)]
        if found:
            violations.append(Violation(kind, len(found), _told(found[0])))
    if entries and not any(entry.outcome == book.OK for entry in entries):
        violations.append(Violation("useless", len(entries), _told(entries[0])))
    return violations + _counted(entries, before, after)


_ANSWERS = (book.OK, book.QUOTA, book.UNAVAILABLE, book.INVALID, book.ERROR)


def comparable(before: Counters | None, after: Counters | None) -> bool:
    """Whether two readings are of one process, and of one kind; a new process counts from 0."""
    if before is None or after is None:
        return False
    return (before.source, before.since) == (after.source, after.since) and after.successes >= before.successes


def _counted(entries: Sequence[Entry], before: Counters | None, after: Counters | None) -> list[Violation]:
    if not comparable(before, after):
        return []
    assert before is not None and after is not None
    ok = sum(entry.outcome == book.OK for entry in entries)
    unknown = sum(entry.outcome in (book.LEFT, book.CUT, book.LOST) for entry in entries)
    counted = after.successes - before.successes
    if ok <= counted <= ok + unknown:
        return []
    allowed = f"{ok:,}" if not unknown else f"{ok:,} to {ok + unknown:,}"
    return [
        Violation("miscounted", abs(counted - ok), f"{after.source} says {counted:,} successes, callers saw {allowed}")
    ]


def _told(entry: Entry) -> str:
    said = " ".join(part for part in (entry.code, entry.detail) if part)
    end = "no end" if entry.ended is None else f"{entry.outcome} after {entry.latency_s * 1e3:.1f} ms"
    why = f" ({said})" if said else ""
    crossed = f": {entry.crossed}" if entry.crossed else ""
    return f"request {entry.id} over {entry.protocol}, due at {entry.scheduled:.3f} s: {end}{why}{crossed}"
