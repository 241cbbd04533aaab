"""Which processes belong to a state's folder: the lock that lets one `penstock up` run, and the file that tells others
(and the next one, after a kill) which they are.

A process is known by its number and its start time, so that another one with the same number is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from penstock.core.errors import AlreadyExists, InvalidInput

_LOCK = "up.lock"
_TREE = "up.json"


@dataclass(frozen=True, slots=True)
class Member:
    """A running process. `started` is in clock ticks since boot. Source: proc(5), field 22 of stat."""

    name: str
    pid: int
    started: int


def member(name: str, pid: int) -> Member | None:
    """The running process of that number; None when there is none."""
    started = _started(pid)
    return None if started is None else Member(name, pid, started)


def prepare(folder: Path) -> None:
    """Makes the state's folder, for its owner only.

    Raises:
        InvalidInput: it cannot be made, belongs to somebody else, or others may write into it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise InvalidInput(f"state {folder}: cannot be made: {error.strerror}; name another with --state") from error
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise InvalidInput(f"state {folder}: must be yours, and writable for nobody else (chmod 700)")


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. Raises: AlreadyExists: another `penstock up` holds it."""
    file: IO[str] = (folder / _LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        pid = next((one.pid for one in members(folder) if one.name == "up"), None)
        raise AlreadyExists(
            f"a platform with the state {folder} is running already" + (f" (process {pid})" if pid else "")
            + "; `penstock down` stops it, --state names another one"
        ) from None  # fmt: skip
    with file:
        yield


def write(folder: Path, running: Iterable[Member], ports: Mapping[str, int]) -> None:
    """Replaces the file."""
    rows = [{"name": one.name, "pid": one.pid, "started": one.started} for one in running]
    new = folder / f"{_TREE}.new"
    new.write_text(json.dumps({"processes": rows, "ports": dict(ports)}))
    new.replace(folder / _TREE)


def members(folder: Path) -> list[Member]:
    """The processes of the file that still run."""
    found = []
    for row in _read(folder).get("processes", []):
        one = Member(str(row["name"]), int(row["pid"]), int(row["started"]))
        if _started(one.pid) == one.started:
            found.append(one)
    return found


def ports(folder: Path) -> Mapping[str, int]:
    """The public ports that the file tells of."""
    return {str(name): int(port) for name, port in _read(folder).get("ports", {}).items()}


def end(one: Member, within_s: float, *, number: int = signal.SIGTERM) -> bool:
    """Signals a process and waits for its end, however long it takes up to `within_s`; whether it has ended."""
    by = time.monotonic() + within_s
    if _started(one.pid) == one.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, number)
    while _started(one.pid) == one.started:
        if time.monotonic() > by:
            return False
        time.sleep(0.02)
    return True


def _read(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / _TREE).read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _started(pid: int) -> int | None:
    """None of one that has ended, also when nobody has taken its exit status yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
