"""What to do next for one deployment: a pure function of what is and the time.

Theory of operation. A revision is a *member* while it is wished to run (PENDING, STARTING, READY). The experiment says
which members are *arms*, that is, get requests; one arm is the *stable* one. A step is one of three kinds:

- Replicas: every revision has a number of replicas that it should have now; what is missing is started, with backoff
  after failures, what is too much is stopped, starting ones first.
- Phases: a member becomes READY when it joins the arms, or FAILED when it does not come up.
- Arms. A *rollout* leads to one revision that takes all: with the policy "latest" to the wished one, by the strategy;
  and to the one that a rollback or a promotion named (`switch_to`). When enough of it is ready, one `Switch` ends the
  rollout. Other policies share requests between members, and a new one joins when its first replica is ready.

A plan that changes the record holds nothing else: the loop executes it and asks again at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.fleet.controller.counts import LATEST, counts, first_of, mixing, needed, rollout_to, shadow_of
from penstock.fleet.controller.view import (
    Action,
    Begin,
    Forget,
    Prepare,
    Remove,
    Retire,
    SetPhase,
    Start,
    Stop,
    Switch,
    View,
)
from penstock.fleet.state import Phase, Replica, ReplicaState, Revision
from penstock.fleet.store.records import policy_text

# A revision that is new has this many replicas end before it has failed.
CRASHES_ALLOWED = 2
# After the first death a replica is replaced at once, then after 1, 2, 4 … s.
LONGEST_BACKOFF_S = 60.0


def plan(view: View, now: float) -> list[Action]:
    """What to do now, in order; [] when nothing is to be done. Doing it twice does no harm."""
    if view.record.state.deleting:
        return _delete(view)
    for changes in (_transition, _arms, _failures):  # what is ready in time has not failed, however late we look
        if stored := list(changes(view, now)):
            return stored
    return [*_forget(view), *_replicas(view, now)]


def earliest_start(view: View, revision: int) -> float:
    """When another replica may start, after those that ended."""
    trouble = view.troubles.get(revision)
    if trouble is None or trouble.count <= 1:
        return 0.0
    return trouble.last_at + min(LONGEST_BACKOFF_S, 2.0 ** (trouble.count - 2))


def _delete(view: View) -> list[Action]:
    drain_s = view.record.state.wish.rollout.drain_s
    running = [one for one in view.replicas if one.state in (ReplicaState.STARTING, ReplicaState.READY)]
    actions: list[Action] = [*_forget(view), *(Stop(one.id, drain_s, reason="deleted") for one in running)]
    if not any(one.state is not ReplicaState.FAILED for one in view.replicas):
        actions.append(Remove())
    return actions


def _failures(view: View, now: float) -> Iterator[Action]:
    """Members that turned out not to come up, or to die again and again before they ever served all."""
    wish = view.record.state.wish
    for revision in view.record.members:
        number = revision.number
        if revision.phase is Phase.READY:
            # One of several arms: what goes on dying is taken out. The stable one is tried for ever.
            trouble = view.troubles.get(number)
            if trouble is not None and trouble.count > 2 * CRASHES_ALLOWED and number != view.record.stable:
                yield SetPhase(number, Phase.FAILED, f"{trouble.count} replicas failed; the last: {trouble.reason}")
            continue
        if number in view.unpreparable:
            yield SetPhase(number, Phase.FAILED, view.unpreparable[number])
        elif revision.phase is Phase.PENDING and number in view.prepared:
            yield SetPhase(number, Phase.STARTING)
        elif revision.phase is Phase.STARTING:
            trouble = view.troubles.get(number)
            if trouble is not None and trouble.count > CRASHES_ALLOWED:
                yield SetPhase(number, Phase.FAILED, f"{trouble.count} replicas failed; the last: {trouble.reason}")
            elif (number in view.prepared or view.present(number)) and now - _progress_at(
                view, revision
            ) > wish.rollout.ready_timeout_s:
                yield SetPhase(number, Phase.FAILED, _not_ready(view, number, wish.rollout.ready_timeout_s))


def _progress_at(view: View, revision: Revision) -> float:
    """When something last went forward: each replica that becomes ready gives the next one its time."""
    ready = [one.ready_at or 0.0 for one in view.ready(revision.number)]
    return max(revision.phase_at, view.prepared.get(revision.number, 0.0), *ready, 0.0)


def _not_ready(view: View, number: int, timeout_s: float) -> str:
    have, wished = len(view.ready(number)), needed(view.record)
    text = f"{have} of {wished} replicas ready, and no other within {timeout_s:g} s"
    if number in view.unplaced:
        return f"{text}: {view.unplaced[number]}"
    trouble = view.troubles.get(number)
    return f"{text}; the last failure: {trouble.reason}" if trouble else text


def _transition(view: View, now: float) -> Iterator[Action]:
    """The end of a rollout, or the first arm."""
    record = view.record
    if record.state.experiment is None:
        candidate = first_of(record)
        if candidate is not None and view.ready(candidate.number):
            yield SetPhase(candidate.number, Phase.READY)
            yield Begin((candidate.number,), candidate.number, "the first revision is ready")
        return
    target = rollout_to(record)
    if target is None:
        return
    ready = len(view.ready(target))
    if record.switch_to is not None:
        enough = 1 if record.switch_when == "any" else needed(record)
    else:
        enough = 1 if record.state.wish.rollout.strategy == "recreate" else needed(record)
    if ready >= enough:
        yield Switch(target, f"{ready} of its replicas are ready")


def _arms(view: View, now: float) -> Iterator[Action]:
    """Who gets requests: the members of shared policies; while a rolling update lasts, old and new by their numbers."""
    record = view.record
    experiment = record.state.experiment
    if experiment is None:
        return
    target, shadow = rollout_to(record), shadow_of(record)
    latest = record.state.wish.traffic.policy == LATEST
    joining = [
        member.number
        for member in record.members
        if member.phase is Phase.STARTING and view.ready(member.number)
        if member.number == shadow or (target is None and not latest)
    ]
    if joining:
        yield from (SetPhase(number, Phase.READY) for number in joining)
        return
    arms = list(experiment.arms)
    if target is not None or latest:
        if target is None:
            for member in record.members:
                if member.number not in (record.stable, record.revision, shadow):
                    yield Retire(member.number, "the policy is latest")
        elif mixing(record) and view.ready(target):
            arms = [*(arm for arm in arms if arm != target), target]
        arms = [arm for arm in arms if arm == record.stable or (view.ready(arm) and not _failed(view, arm))]
    else:
        ready = [one.number for one in record.members if one.phase is Phase.READY]
        arms = [*(arm for arm in arms if arm in ready), *(number for number in ready if number not in arms)]
    arms = [arm for arm in arms if arm != shadow]
    if not arms:
        return
    stable = record.stable if record.stable in arms else arms[0]
    assert stable is not None
    arms = [stable, *(arm for arm in arms if arm != stable)]
    if tuple(arms) != experiment.arms or (record.policy != policy_text(record.state.wish) and record.switch_to is None):
        yield Begin(tuple(arms), stable, "the arms or the policy changed")


def _failed(view: View, number: int) -> bool:
    revision = view.record.find(number)
    return revision is None or revision.phase is Phase.FAILED


def _forget(view: View) -> Iterator[Action]:
    yield from (Forget(one.id) for one in view.replicas if one.state is ReplicaState.FAILED)


def _replicas(view: View, now: float) -> Iterator[Action]:
    """Starts and stops, until each revision has what `counts` says."""
    record = view.record
    rollout = record.state.wish.rollout
    wanted = counts(view, now)
    serving = set(record.state.experiment.arms) if record.state.experiment else set()
    spare = sum(len(view.ready(arm)) for arm in serving) - wanted.floor
    for revision in record.state.revisions:
        number = revision.number
        want = wanted.by_revision.get(number, 0)
        starting, ready = view.starting(number), view.ready(number)
        for replica in list(starting):
            if now - replica.started_at > rollout.ready_timeout_s and revision.phase is not Phase.STARTING:
                starting.remove(replica)
                reason = f"not ready within {rollout.ready_timeout_s:g} s"
                yield Stop(replica.id, 0.0, failed=True, reason=reason)
        missing = want - len(starting) - len(ready)
        if missing > 0:
            if number not in view.prepared:
                yield Prepare(number, revision.run)
            elif now >= earliest_start(view, number):
                # One at a time after a failure, so that a revision that cannot run fails once and not many times.
                trouble = view.troubles.get(number)
                yield from [Start(number, revision.run)] * (1 if trouble and trouble.count > 1 else missing)
        surplus = _surplus(starting, ready, -missing)
        for replica in surplus:
            if replica.state is ReplicaState.READY and number in serving:
                if spare <= 0:
                    break
                spare -= 1
            yield Stop(replica.id, rollout.drain_s, reason="not wished any more")


def _surplus(starting: list[Replica], ready: list[Replica], number: int) -> list[Replica]:
    """Which go: those that start before those that serve, the youngest first."""
    if number <= 0:
        return []
    order = [
        *sorted(starting, key=lambda one: -one.started_at),
        *sorted(ready, key=lambda one: -(one.ready_at or 0.0)),
    ]
    return order[:number]
