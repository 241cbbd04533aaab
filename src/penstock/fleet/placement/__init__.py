"""Placement policies: where a replica runs. The file's name is the policy's name. Each module has `plug`, a `Policy`;
pure. On one machine a place is a set of GPUs and a share of cores and memory; with more machines it is one of those.

An implementer owes: `place` never promises more of a resource than a place has free, and is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.fleet.spec import Run


@dataclass(frozen=True, slots=True)
class Place:
    """A machine with what it has in all. `gpus` is the number of devices."""

    name: str
    cpu: float
    memory_bytes: int
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What one running replica holds: of `place`, and of its GPUs by index."""

    place: str
    run: Run
    gpu_shares: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """A decision. `gpu_shares` by device index; `reason` says, without a place, what was asked and is free."""

    place: str | None
    gpu_shares: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""


class Policy(Protocol):
    name: str

    def place(self, run: Run, places: Sequence[Place], taken: Sequence[Taken]) -> Placed: ...
