"""One deployment as `reconcile` sees it, and the actions it may answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.fleet.spec import Run
from penstock.fleet.state import Phase, Replica, ReplicaState
from penstock.fleet.store.records import Record


@dataclass(frozen=True, slots=True)
class Trouble:
    """Replicas of one revision that ended unasked, or never came up, one after the other without a good one between."""

    count: int
    last_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """`record` and all that the loop knows beside it. Replicas that wait for routers to let go of them are DRAINING."""

    record: Record
    replicas: Sequence[Replica] = ()
    prepared: Mapping[int, float] = field(default_factory=dict)  # revision -> since when it can be started
    unpreparable: Mapping[int, str] = field(default_factory=dict)  # revision -> why not
    troubles: Mapping[int, Trouble] = field(default_factory=dict)
    unplaced: Mapping[int, str] = field(default_factory=dict)  # revision -> why no replica of it has room

    def ready(self, revision: int) -> list[Replica]:
        return self._in(revision, ReplicaState.READY)

    def starting(self, revision: int) -> list[Replica]:
        return self._in(revision, ReplicaState.STARTING)

    def live(self, revision: int) -> int:
        """Replicas that serve or will."""
        return len(self.ready(revision)) + len(self.starting(revision))

    def present(self, revision: int) -> bool:
        """Anything at all that still runs, draining too."""
        return any(one.revision == revision and one.state is not ReplicaState.FAILED for one in self.replicas)

    def _in(self, revision: int, state: ReplicaState) -> list[Replica]:
        return [one for one in self.replicas if one.revision == revision and one.state is state]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make what the revision needs before a replica can start. Doing it twice costs nothing."""

    revision: int
    run: Run


@dataclass(frozen=True, slots=True)
class Start:
    """One more replica."""

    revision: int
    run: Run


@dataclass(frozen=True, slots=True)
class Stop:
    """Out of the route table, then drained. `failed` says that the replica never came up."""

    replica: str
    grace_s: float
    failed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The replica has failed, and that was taken note of."""

    replica: str


@dataclass(frozen=True, slots=True)
class SetPhase:
    revision: int
    phase: Phase
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """A new experiment."""

    arms: tuple[int, ...]
    stable: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Switch:
    """The revision becomes the only arm, and the stable one."""

    revision: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Retire:
    """A member is wished no more."""

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Nothing of the deleted deployment runs any more."""


Action = Prepare | Start | Stop | Forget | SetPhase | Begin | Switch | Retire | Remove
STORED = (SetPhase, Begin, Switch, Retire, Remove)
"""Actions that change the record: what else was planned beside them is planned anew."""
