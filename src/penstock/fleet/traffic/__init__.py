"""Traffic policies: arm statistics → weights. The file's name is the policy's name in a deployment's `traffic`.

Each module has `plug`, a `Policy`. It is pure: no clock, no randomness, no I/O; `now` and all it knows are arguments.
The router only draws from the weights, so the propensity of every choice is known and logged for free. Only a
contextual policy is asked per request.

An implementer owes:
1. `options` reads the deployment's `traffic.options`, refuses unknown keys (naming the nearest) and wrong values with
   `InvalidInput`, and fills defaults. It is called before a deployment is accepted.
2. `decide` gives weights for exactly the observed arms, each between 0 and 1, that sum to 1 (to 1e-9). An arm that is
   not `ready` gets 0 unless it is the stable one.
3. Deciding twice from the same observation gives the same decision. What it must remember (the canary's step, the
   running value of a sequential test) goes into `memory`, JSON-able, which comes back in the next observation of the
   same experiment; after a restart of the controller too.
4. `reason` and `explanation` state the figures that decided, for people ("error rate 4.1 % of 1,220, stable 0.3 % of
   11,004").
5. A contextual policy also has `choose`, which routers call per request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from penstock.fleet.routes import Contextual
from penstock.fleet.state import ArmStatistics


@dataclass(frozen=True, slots=True)
class Arm:
    """One revision as a policy sees it."""

    revision: int
    ready: bool
    ready_since: float  # wall clock, s
    statistics: ArmStatistics


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy decides from. `stable` is the revision of the arm that was serving when the experiment began."""

    now: float  # wall clock, s
    started_at: float  # when the experiment began
    arms: Sequence[Arm]
    stable: int
    memory: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of an experiment: `promote` makes `revision` the only arm; not promoting takes it out as failed."""

    revision: int
    promote: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Weights by revision, and what else follows from the observation."""

    weights: Mapping[int, float]
    memory: Mapping[str, object] = field(default_factory=dict)
    verdict: Verdict | None = None
    alarms: tuple[str, ...] = ()  # such as a sample-ratio mismatch; shown until a decision comes without them
    explanation: str = ""
    contextual: Contextual | None = None  # for the route table, of contextual policies


class Policy(Protocol):
    name: str
    logged: bool  # decisions are logged and answers carry tokens, because rewards are wanted

    def options(self, given: Mapping[str, object]) -> Any:
        """The policy's own options object. Raises: InvalidInput."""
        ...

    def decide(self, options: Any, observed: Observation) -> Decision: ...


@runtime_checkable
class ContextualPolicy(Protocol):
    def choose(self, parameters: Contextual, context: Sequence[float], draw: float) -> tuple[int, float]:
        """The index of the chosen arm and its propensity, for one request's context of `dimension` numbers.

        `draw` is uniform in [0, 1). Raises: InvalidInput: the context has another length, or numbers that are not
        finite."""
        ...
