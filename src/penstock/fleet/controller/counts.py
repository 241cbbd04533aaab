"""How many replicas each revision should have at this moment. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.fleet.controller.view import View
from penstock.fleet.state import Phase, Revision
from penstock.fleet.store.records import MEMBERS, Record

LATEST = "latest"
"""The policy that leads to one revision. All others share requests between the members."""


@dataclass(frozen=True, slots=True)
class Counts:
    """`floor` is how many ready replicas the arms keep together: fewer are never left by stopping some."""

    by_revision: dict[int, int]
    floor: int


def needed(record: Record) -> int:
    """Replicas that serve all requests: as many as are wished, and one where none is, to show that it works."""
    return max(1, record.size)


def shadow_of(record: Record) -> int | None:
    """The revision that gets copies only; the stable one cannot."""
    shadow = record.state.wish.traffic.shadow
    if shadow is None or record.stable is None or shadow.revision == record.stable:
        return None
    revision = record.find(shadow.revision)
    return shadow.revision if revision is not None and revision.phase in MEMBERS else None


def rollout_to(record: Record) -> int | None:
    """The revision that is to take all requests, while it does not yet."""
    experiment = record.state.experiment
    if experiment is None:
        return None
    if record.switch_to is not None:
        return record.switch_to
    if record.state.wish.traffic.policy != LATEST or record.revision == shadow_of(record):
        return None
    revision = record.find(record.revision)
    if revision is None or revision.phase not in (Phase.STARTING, Phase.READY):
        return None
    others = [arm for arm in experiment.arms if arm != record.revision]
    return record.revision if others or record.revision != experiment.stable else None


def mixing(record: Record) -> bool:
    """Whether old and new share requests by their numbers of replicas while a rollout lasts: a rolling update does, and
    a promotion of one that runs anyway. A rollback switches at once, blue-green when all are ready."""
    if rollout_to(record) is None:
        return False
    strategy = record.state.wish.rollout.strategy
    if record.switch_to is not None:
        return record.switch_when == "all" and strategy != "blue-green"
    return strategy == "rolling"


def first_of(record: Record) -> Revision | None:
    """The revision that is to serve first, where none did: the wished one, or the newest that still can."""
    wished = record.find(record.revision)
    if wished is not None and wished.phase in MEMBERS:
        return wished
    return record.members[-1] if record.members else None


def counts(view: View, now: float) -> Counts:
    """What each revision should have; those that are not named should have none."""
    record = view.record
    wanted = _steady(view) if record.state.experiment else _first(record)
    target = rollout_to(record)
    floor = record.size if record.state.experiment else 0
    if target is not None:
        floor = _rollout(view, target, wanted)
    for revision in record.state.revisions:
        if revision.phase is Phase.RETIRED and revision.number not in wanted:
            wanted[revision.number] = _warm(view, revision.number, revision.phase_at, now)
    return Counts(wanted, floor)


def _first(record: Record) -> dict[int, int]:
    """Nothing serves yet."""
    revision = first_of(record)
    return {revision.number: needed(record)} if revision is not None else {}


def _steady(view: View) -> dict[int, int]:
    """Arms share the wished number by their weights, each with one at least; members that come up have one."""
    record = view.record
    experiment = record.state.experiment
    assert experiment is not None
    arms = [arm for arm in experiment.arms if _alive(record, arm)]
    wanted: dict[int, int] = {}
    given = {} if record.state.wish.traffic.policy == LATEST else experiment.weights
    weights = {arm: given.get(arm, 0.0) for arm in arms}
    total = sum(weights.values())
    for arm in arms:
        share = weights[arm] / total if total else (1.0 if arm == experiment.stable else 0.0)
        # Rounded down first: a share of 2.0000001 replicas is 2.
        wanted[arm] = max(1, math.ceil(round(share * record.size, 6))) if record.size else 0
    shadow = shadow_of(record)
    for member in record.members:
        if member.number in wanted:
            continue
        if member.number == shadow and member.phase is Phase.READY:
            part = record.state.wish.traffic.shadow
            wanted[member.number] = math.ceil(round(part.share * record.size, 6)) if part else 0
        elif member.phase is not Phase.READY:
            wanted[member.number] = 1
    return wanted


def _rollout(view: View, target: int, wanted: dict[int, int]) -> int:
    """Changes `wanted` for a rollout to `target`; gives the floor."""
    record = view.record
    need = needed(record)
    rollout = record.state.wish.rollout
    assert record.state.experiment is not None
    olds = [arm for arm in record.state.experiment.arms if arm != target and _alive(record, arm, retired=True)]
    if mixing(record):
        return _rolling(view, target, olds, wanted)
    if record.switch_to is None and rollout.strategy == "recreate":
        for old in olds:
            wanted[old] = 0
        wanted[target] = 0 if any(view.present(old) for old in olds) else need
        return 0
    for old in olds:
        wanted[old] = max(wanted.get(old, 0), min(view.live(old), need))
    wanted[target] = need
    return record.size


def _rolling(view: View, target: int, olds: list[int], wanted: dict[int, int]) -> int:
    """Surge first. New ones start while there is room above what is needed; old ones go while more are ready than are
    needed. Until a new one is ready the old ones are kept up; then one that is lost makes room for a new one."""
    record = view.record
    need = needed(record)
    have = {old: len(view.ready(old)) for old in olds}
    new = len(view.ready(target))
    stable = record.stable
    if not new and stable in have:
        have[stable] = max(have[stable], record.size - sum(have.values()) + have[stable])
    room = need + record.state.wish.rollout.surge - sum(have.values()) - view.live(target)
    wanted[target] = min(need, view.live(target) + max(0, room))
    spare = sum(have.values()) + new - need
    for old in sorted(olds, key=lambda one: one == stable):  # the stable one goes last
        going = min(max(0, spare), have[old])
        spare -= going
        wanted[old] = have[old] - going
    return need if record.size else 0


def _warm(view: View, number: int, retired_at: float, now: float) -> int:
    """What stays of a revision that was replaced, so that going back takes no start; none where room is short."""
    record = view.record
    if view.unplaced or record.size == 0 or now >= retired_at + record.state.wish.rollout.keep_previous_s:
        return 0
    return min(len(view.ready(number)), needed(record))


def _alive(record: Record, number: int, retired: bool = False) -> bool:
    revision = record.find(number)
    return revision is not None and (revision.phase in MEMBERS or (retired and revision.phase is Phase.RETIRED))
