"""What is written about a replica, so that a later controller knows it again: one small file in the replica's folder.
No environment, no command: nothing of it is a secret."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from penstock.fleet.state import Replica, ReplicaState

FILE = "replica.json"


class Record(msgspec.Struct, kw_only=True):
    """One replica. `pid` is None until the process runs; with the other two of its identity it is never another."""

    id: str
    deployment: str
    revision: int
    place: str
    marker: str
    started_at: float
    pid: int | None = None
    started_ticks: int = 0  # of the process, since boot
    boot: str = ""
    http: str = ""
    grpc: str = ""
    ready_at: float | None = None
    stop_by: float | None = None  # it was asked to stop; what is left of it then is killed
    reason: str = ""  # it failed
    ended_at: float | None = None
    forgotten: bool = False  # nobody need hear of it any more; only its log is kept
    groups: list[str] = []  # its control groups
    cpu: float | None = None
    memory_bytes: int | None = None
    limited: bool = False  # a group holds it to that
    files: list[str] = []  # what it serves, for the pages that are kept
    uses: list[str] = []  # names of environments and unpacked archives
    content: dict[str, str] = {}  # what it has loaded, see `state.Replica`
    pinned: bool = False  # what it had to load was known before


def replica(record: Record, state: ReplicaState) -> Replica:
    """The replica as it is reported."""
    return Replica(
        record.id, record.deployment, record.revision, state, record.http, record.grpc, record.started_at,
        record.ready_at, record.reason, record.pid, record.place, record.content,
    )  # fmt: skip


def write(folder: Path, record: Record) -> None:
    """Replaces the record in the replica's folder, whole or not at all. Raises: OSError."""
    new = folder / f"{FILE}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(record))
    new.replace(folder / FILE)


def read(folder: Path) -> Record | None:
    """The record of a replica's folder; None when there is none that can be read."""
    with contextlib.suppress(OSError, msgspec.DecodeError):  # ValidationError is one
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Record)
    return None
