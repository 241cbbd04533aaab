"""The processes of a running server, found in /proc, and waiting for what they are to become."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from watched_processes import held_by


def workers(pid: int, model: str = "") -> list[int]:
    """Worker processes of a server, of all models or of one."""
    return [one.pid for one in held_by(pid) if one.role.startswith(f"worker {model}")]


def fronts(pid: int) -> list[int]:
    """Extra front processes of a server."""
    return [one.pid for one in held_by(pid) if one.role == "front"]


def alive(pids: Iterable[int]) -> list[int]:
    """Those that run; a zombie does not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def kill(pids: Iterable[int], number: int) -> None:
    """Sends a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def until(claim: Callable[[], Any], within_s: float, what: str) -> Any:
    """What `claim` gives, as soon as it is true. Fails with `what` when it does not become true in time."""
    deadline = time.monotonic() + within_s
    while not (value := claim()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)
    return value
