"""The processes below a running server."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run, from all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def workers(pid: int) -> list[int]:
    """The server's worker processes."""
    return [child for child in children(pid) if b"penstock-worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def kill_workers(pid: int) -> None:
    """Kills them as the kernel does for memory."""
    for worker in workers(pid):
        os.kill(worker, signal.SIGKILL)
