"""What is done to a server while it is under load: signals to its processes, by the operating system alone."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.core.errors import InvalidInput, NotFound

SIGNALS: Final = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "continue": signal.SIGCONT,
    "terminate": signal.SIGTERM,
    "interrupt": signal.SIGINT,
    "crash": signal.SIGSEGV,
}
VICTIMS: Final = ("server", "worker", "child")
_FORM: Final = "ACTION[:VICTIM]@SECOND, such as kill:worker@5"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to do at `at_s` seconds: send a signal (an action of SIGNALS) to a process, or `call` something.

    `victim` "server" is process `pid` itself, "worker" is the one of its descendants that used the most processor time,
    "child" is the one that used the least.
    """

    at_s: float
    action: str
    pid: int | None = None
    victim: str = "server"
    call: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.call is None and self.action not in SIGNALS:
            raise InvalidInput(f"a fault's action is one of {', '.join(SIGNALS)}; got {self.action!r}")
        if self.victim not in VICTIMS:
            raise InvalidInput(f"a fault's victim is one of {', '.join(VICTIMS)}; got {self.victim!r}")

    def inject(self) -> str:
        """Does it, and says what was done. Called from a thread.

        Raises:
            NotFound: there is no such process.
            OSError: the system does not allow it.
        """
        if self.call is not None:
            self.call()
            return self.action
        if self.pid is None:
            raise InvalidInput(f"{self.action} needs the server's process (--pid)")
        pid = self.pid if self.victim == "server" else _descendant(self.pid, busiest=self.victim == "worker")
        if pid is None:
            raise NotFound(f"{self.action} found no {self.victim} of process {self.pid}")
        try:
            os.kill(pid, SIGNALS[self.action])
        except ProcessLookupError:
            raise NotFound(f"{self.action} found process {pid} gone") from None
        return f"{self.action} {self.victim} {pid}"


def parse(text: str, pid: int | None) -> Fault:
    """The fault that `text` names. Raises: InvalidInput."""
    found = re.fullmatch(r"([a-z]+)(?::([a-z]+))?@([0-9]+(?:\.[0-9]+)?)", text.strip())
    if found is None:
        raise InvalidInput(f"--fault is {text!r}; write {_FORM}")
    if pid is None:
        raise InvalidInput("--fault needs the process to break: --pid PID")
    return Fault(float(found[3]), found[1], pid, found[2] or "server")


def descendants(pid: int) -> list[int]:
    """Living descendants of a process, parents first."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = _stat(int(folder.name))
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        mine = children.get(waiting.pop(0), [])
        found += mine
        waiting += mine
    return found


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone. Pages that processes share count in each."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _descendant(pid: int, *, busiest: bool) -> int | None:
    times: dict[int, int] = {}
    for one in descendants(pid):
        try:
            fields = _stat(one)
        except OSError:
            continue
        times[one] = int(fields[11]) + int(fields[12])
    if not times:
        return None
    return (max if busiest else min)(times, key=lambda one: times[one])


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on. Source: proc(5); the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
