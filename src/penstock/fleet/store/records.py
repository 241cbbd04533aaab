"""One deployment as the store has it, and how rows become values and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from penstock.fleet import spec
from penstock.fleet.spec import Deployment, Run
from penstock.fleet.state import DeploymentState, Experiment, Phase, Revision

MEMBERS = (Phase.PENDING, Phase.STARTING, Phase.READY)
"""The phases of revisions that are wished to run; of others, replicas are at most kept for a while."""


@dataclass(frozen=True, slots=True)
class Record:
    """`state` has no replicas here: they are the driver's to report."""

    state: DeploymentState
    revision: int  # whose run the wish has
    switch_to: int | None = None  # becomes the only arm once enough of it is ready:
    switch_when: str = "all"  # "any" replica, or "all" that are wished
    size: int = 1  # replicas wished, all arms together
    size_reason: str = ""
    size_memory: Mapping[str, object] = field(default_factory=dict)
    policy: str = ""  # what the experiment was begun with, as `policy_text` gives it
    created_at: float = 0.0

    @property
    def name(self) -> str:
        return self.state.wish.name

    def find(self, number: int | None) -> Revision | None:
        """The revision of that number."""
        return next((one for one in self.state.revisions if one.number == number), None)

    @property
    def stable(self) -> int | None:
        return self.state.experiment.stable if self.state.experiment else None

    @property
    def members(self) -> tuple[Revision, ...]:
        return tuple(one for one in self.state.revisions if one.phase in MEMBERS)


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    deployment: str
    at: float
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What a change did. `changed` has `{"key", "before", "after"}` for each value that differs, keys with dots."""

    name: str
    generation: int
    revision: int
    changed: tuple[Mapping[str, object], ...]


def policy_text(wish: Deployment) -> str:
    """What makes an experiment another one when it changes: the policy and its options."""
    return json.dumps([wish.traffic.policy, wish.traffic.options], sort_keys=True, default=str)


def difference(before: Deployment | None, after: Deployment) -> tuple[Mapping[str, object], ...]:
    """The values that differ, by dotted keys; against defaults where there was nothing before."""
    old = flat(spec.write(before)) if before else {}
    new = flat(spec.write(after))
    return tuple(
        {"key": key, "before": old.get(key), "after": new.get(key)}
        for key in dict.fromkeys((*new, *old))
        if old.get(key) != new.get(key)
    )


def flat(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """A document with dotted keys; lists stay whole, empty mappings vanish."""
    out: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def wish_of(row: RowMapping) -> Deployment:
    return spec.read_again(row["name"], json.loads(row["document"]))


def revision_of(row: RowMapping) -> Revision:
    run = msgspec.json.decode(row["run"], type=Run)
    return Revision(
        row["deployment"], row["number"], run, row["created_at"], Phase(row["phase"]), row["reason"], row["phase_at"],
        json.loads(row["content"] or "{}"),
    )  # fmt: skip


def experiment_of(row: RowMapping) -> Experiment:
    return Experiment(
        id=row["id"],
        arms=tuple(json.loads(row["arms"])),
        stable=row["stable"],
        started_at=row["started_at"],
        memory=json.loads(row["memory"]),
        weights={int(number): float(weight) for number, weight in json.loads(row["weights"]).items()},
        alarms=tuple(json.loads(row["alarms"])),
        explanation=row["explanation"],
    )


def record_of(row: RowMapping, revisions: tuple[Revision, ...], experiment: RowMapping | None) -> Record:
    state = DeploymentState(
        wish=wish_of(row),
        generation=row["generation"],
        revisions=revisions,
        experiment=experiment_of(experiment) if experiment is not None else None,
        paused=bool(row["paused"]),
        deleting=bool(row["deleting"]),
    )
    return Record(
        state, row["revision"], row["switch_to"], row["switch_when"], row["size"], row["size_reason"],
        json.loads(row["size_memory"]), experiment["policy"] if experiment is not None else "", row["created_at"],
    )  # fmt: skip


def run_text(run: Run) -> str:
    return msgspec.json.encode(run).decode()


def text(value: Any) -> str:
    return json.dumps(value, default=str)
