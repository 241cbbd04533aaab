"""Scaling policies: load → how many replicas. The file's name is the policy's name in a deployment's `scaling`.

Each module has `plug`, a `Policy`; pure, as traffic policies are. Of several policies of one deployment the largest
answer counts; the bounds of the deployment are kept by the caller, and so is the wait before zero.

An implementer owes:
1. `options` as in `fleet.traffic`.
2. `size` gives a number of replicas ≥ 0. The same load gives the same size: under constant load it does not change its
   mind.
3. With `load.ready` replicas and no samples at all (a scaler that has just started) it answers with what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from penstock.fleet.state import LoadSample


@dataclass(frozen=True, slots=True)
class Load:
    """What a policy decides from. Samples are one per second, oldest first, at most `WINDOW_S` of them."""

    now: float
    samples: Sequence[LoadSample]
    ready: int  # replicas that answer
    wished: int  # as last decided; what is starting is in it
    memory: Mapping[str, object] = field(default_factory=dict)


WINDOW_S = 3600
"""How much history is kept for policies."""


@dataclass(frozen=True, slots=True)
class Size:
    replicas: int
    reason: str  # with the figures that decided, for people
    memory: Mapping[str, object] = field(default_factory=dict)


class Policy(Protocol):
    name: str

    def options(self, given: Mapping[str, object]) -> Any:
        """Raises: InvalidInput."""
        ...

    def size(self, options: Any, load: Load) -> Size: ...
