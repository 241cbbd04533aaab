"""Starts the process of a replica, knows it again, and ends it with all that it started.

Identity. A number alone may be another process by now. A replica is its number, its start time since boot (proc(5),
field 22 of stat), the boot, and the marker in its environment, which nobody else has. All are compared after a pidfd is
open, and from then on the pidfd stands for that very process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.fleet.local.variables import MARKER

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Joins its groups before it becomes the replica, so that not one page is counted elsewhere. A replica whose limits
# cannot be set does not run without them.
_JOIN = (
    'for group; do [ "$group" = -- ] && break; shift; echo $$ >"$group/cgroup.procs" || exit 71; done; shift; exec "$@"'
)
_KILL_ROUNDS = 50  # each kills what is there; what forks faster than that is caught by its control group


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process. `ticks` is when it started, in clock ticks since `boot`."""

    pid: int
    ticks: int
    boot: str


def start(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, output: int, groups: Sequence[Path]
) -> int:
    """The number of a new process: in a session of its own, in `folder`, writing to the descriptor `output`. Whoever
    started it reaps it. Raises: OSError."""
    if groups:
        arguments = ["/bin/sh", "-c", _JOIN, "penstock", *map(str, groups), "--", *arguments]
    process = subprocess.Popen(
        arguments, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        start_new_session=True,
    )  # fmt: skip
    process.returncode = 0  # waiting for it is not this object's: adopted processes have none either
    return process.pid


def identity(pid: int) -> Identity | None:
    """The identity of the process that has this number now; None when there is none, or it has ended."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return Identity(pid, int(fields[19]), _boot())


def marked(pid: int, marker: str) -> bool:
    """Whether the process carries exactly this marker. Nobody else's environment can be read, so theirs do not."""
    return _marker(pid) == marker


def open_again(known: Identity, marker: str) -> int | None:
    """A pidfd of the process that was `known`, if it is still that one; the caller closes it."""
    try:
        descriptor = os.pidfd_open(known.pid)
    except OSError:
        return None
    if identity(known.pid) == known and marked(known.pid, marker):
        return descriptor
    os.close(descriptor)
    return None


def carriers(prefix: str) -> Iterator[tuple[int, str]]:
    """Processes whose marker begins with `prefix`, with their markers."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            marker = _marker(int(entry))
            if marker.startswith(prefix):
                yield int(entry), marker


def kill_all(marker: str) -> bool:
    """Whether nothing that carries the marker is left, after SIGKILL to each of them."""
    own = os.getpid()
    for _ in range(_KILL_ROUNDS):
        found = [pid for pid, _ in carriers(marker) if pid != own and identity(pid) is not None]
        if not found:
            return True
        for pid in found:
            _kill_marked(pid, marker)
        time.sleep(0.01)  # in a thread: what was killed takes a moment to be gone
    return False


def in_words(status: int | None) -> str:
    """How a process ended, from its `returncode`; None for one whose parent is gone, and that nobody could ask."""
    if status is None:
        return "it ended"
    if status < 0:
        try:
            return f"it was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"it was ended by signal {-status}"
    return f"it ended with exit status {status}"


def _kill_marked(pid: int, marker: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _marker(pid).startswith(marker):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _marker(pid: int) -> str:
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    wanted = MARKER.encode() + b"="
    for item in data.split(b"\0"):
        if item.startswith(wanted):
            return item[len(wanted) :].decode(errors="replace")
    return ""


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name before may hold anything


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
