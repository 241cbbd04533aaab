"""Limits of a replica where this machine gives no control groups: less exact, and better than none.

Memory: each worker watches over its own (`max_memory_bytes`), and the replica as a whole is looked at a few times a
second. Processors: as many as the share rounded up, by affinity, and threads of the model to match.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

from penstock.fleet.local import groups, process
from penstock.fleet.local.record import Record
from penstock.fleet.spec import Run

# Processors that a replica has at the least until it is ready: a small share would make a start from zero long, and a
# runtime counts less than two as one, so that it plans nothing by this.
_STARTING_CPU = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


def model_defaults(run: Run, made: groups.Made) -> Mapping[str, object]:
    """Model options that stand in for limits which no group holds."""
    options: dict[str, object] = {}
    if run.memory_bytes is not None and not made.memory:
        options["max_memory_bytes"] = run.memory_bytes
    if run.cpu is not None and not made.cpu:
        options["threads"] = max(1, int(run.cpu))
    return options


def starting_cpu(cpu: float, most: float | None) -> float:
    """The share that a replica has until it is ready. `most` is what the group above allows: more would be refused."""
    return max(cpu, _STARTING_CPU if most is None else min(_STARTING_CPU, most))


def begin_share(one: Record) -> None:
    """It is ready: from now on it has its share."""
    if one.cpu is not None and one.cpu < _STARTING_CPU:
        groups.set_cpu(map(Path, one.groups), one.cpu)


def bind(pid: int, cpu: float, turn: int) -> None:
    """Lets a process, and what it starts, run on as many processors as its share; `turn` deals them."""
    with contextlib.suppress(OSError):
        cores = sorted(os.sched_getaffinity(0))
        wished = min(len(cores), math.ceil(cpu))
        os.sched_setaffinity(pid, {cores[(turn + step) % len(cores)] for step in range(wished)})


def broken(one: Record) -> str:
    """Why a replica has to be ended for its memory, or "". In a thread."""
    if one.memory_bytes is None:
        return ""
    limit = f"{one.memory_bytes / (1 << 20):g} MiB"
    if one.limited:
        # Version 2 ends all of it by itself. With version 1 it ends one process, and the rest would go on hungry.
        if groups.kills_for_memory(map(Path, one.groups), below=False):
            return f"it had to be killed: the kernel ended a process of it for wanting more memory than its {limit}"
    elif (held := _held_bytes(one.marker)) > one.memory_bytes:
        return f"it had to be killed: it held {held / (1 << 20):.0f} MiB of memory, its limit is {limit}"
    return ""


def _held_bytes(marker: str) -> int:
    """Memory that all processes of a replica hold, without the files that they have mapped."""
    total = 0
    for pid, _ in process.carriers(marker):
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            total += (resident - shared) * _PAGE
    return total
