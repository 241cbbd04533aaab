"""Ends the replicas of a driver's folder when there is no controller to do it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from penstock.fleet.local import groups, process, record
from penstock.fleet.local.record import Record


def end_all(folder: Path, grace_s: float) -> list[str]:
    """The ids of replicas that ran and have ended now: asked to stop, and killed after `grace_s` with all that they
    started. `folder` is the driver's own. To be called while no controller runs; it takes up to `grace_s` and some."""
    running: dict[int, Record] = {}
    ended: list[str] = []
    for kept in _records(folder / "replicas"):
        if kept.ended_at is None and kept.pid is not None:
            known = process.Identity(kept.pid, kept.started_ticks, kept.boot)
            if (pidfd := process.open_again(known, kept.marker)) is not None:
                running[pidfd] = kept
    by = time.monotonic() + grace_s
    for pidfd, kept in running.items():
        if kept.stop_by is None:  # a second signal would cut what is in flight
            _signal(pidfd, signal.SIGTERM)
    wait = select.poll()
    for pidfd in running:
        wait.register(pidfd, select.POLLIN)
    left = set(running)
    while left and (pause_s := by - time.monotonic()) > 0:
        for pidfd, _ in wait.poll(pause_s * 1000):
            wait.unregister(pidfd)
            left.discard(pidfd)
    for pidfd, kept in running.items():
        _signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        ended.append(kept.id)
    for kept in _records(folder / "replicas"):
        if kept.ended_at is None:
            _clean(folder / "replicas" / kept.id, kept)
    return ended


def _clean(folder: Path, kept: Record) -> None:
    folders = [Path(one) for one in kept.groups]
    groups.kill(folders)
    process.kill_all(kept.marker)
    groups.remove(folders)
    kept.ended_at, kept.forgotten = time.time(), True
    with contextlib.suppress(OSError):
        record.write(folder, kept)


def _records(replicas: Path) -> list[Record]:
    with contextlib.suppress(OSError):
        found = [(entry.name, record.read(entry)) for entry in sorted(replicas.iterdir())]
        return [kept for name, kept in found if kept is not None and kept.id == name]
    return []


def _signal(pidfd: int, number: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, number)
