"""What every process of a server holds, read from /proc: memory, open files, threads, shared memory, sockets."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Held:
    """What one process held at one moment."""

    pid: int
    role: str  # "core", "front", or "worker NAME@VERSION"
    at_s: float  # monotonic
    private_bytes: int  # pages of its own
    shared_bytes: int  # its share of shared memory; the files it has mapped are in neither
    rss_bytes: int
    threads: int
    files: Counter[str] = field(default_factory=Counter)  # open ones by kind: "socket", "memfd", "pipe", "file", …
    shared_maps: int = 0  # mapped segments of anonymous shared memory

    @property
    def own_bytes(self) -> int:
        return self.private_bytes + self.shared_bytes

    @property
    def open_files(self) -> int:
        return self.files.total()


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    found = [pid]
    for parent in found:
        for task in _entries(f"/proc/{parent}/task"):
            found += [int(child) for child in _read(f"/proc/{parent}/task/{task}/children").split()]
    return found


def zombies(pid: int) -> list[int]:
    """Descendants that ended and that nobody has reaped."""
    return [one for one in family(pid) if _read(f"/proc/{one}/stat").rpartition(")")[2].split()[:1] == ["Z"]]


def held_by(pid: int) -> list[Held]:
    """What every living process of the server holds now, the first process first."""
    return [held for one in family(pid) if (held := _held(one, one == pid)) is not None]


def cpu_s(pid: int) -> float:
    """Processor time that one process has used so far."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def named_shared_memory() -> set[str]:
    """Our files in /dev/shm and /dev/mqueue, of which there may never be one: ours are anonymous. Other programs' are
    theirs."""
    return {name for folder in ("/dev/shm", "/dev/mqueue") for name in _entries(folder) if "penstock" in name}


def _held(pid: int, first: bool) -> Held | None:
    rollup = _read(f"/proc/{pid}/smaps_rollup")
    if not rollup:
        return None  # it has ended
    kib = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB", rollup, re.MULTILINE)}
    files: Counter[str] = Counter()
    for number in _entries(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            files[_kind(os.readlink(f"/proc/{pid}/fd/{number}"))] += 1
    threads = re.search(r"^Threads:\s+(\d+)", _read(f"/proc/{pid}/status"), re.MULTILINE)
    return Held(
        pid,
        "core" if first else _role(pid),
        time.monotonic(),
        kib["Anonymous"] << 10,
        kib.get("Pss_Shmem", 0) << 10,
        kib["Rss"] << 10,
        int(threads[1]) if threads else 0,
        files,
        _read(f"/proc/{pid}/maps").count("/memfd:"),
    )


def _role(pid: int) -> str:
    command = _read(f"/proc/{pid}/cmdline").split("\0")
    worker = next((word for word in command if word.startswith("penstock-worker:")), None)
    if worker is not None:
        return f"worker {worker.removeprefix('penstock-worker:')}"
    return "front" if "penstock.runtime.fronts.main" in command else "other"


def _kind(target: str) -> str:
    if target.startswith("/memfd:"):
        return "memfd"
    name, colon, _ = target.partition(":")
    return name if colon and not name.startswith("/") else "file"


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Slope:
    """The growth of one quantity per second, and the interval that holds the true one with 95 % confidence."""

    per_s: float
    least: float
    most: float


def slope(times: Sequence[float], values: Sequence[float]) -> Slope:
    """The median of the slopes of all pairs (Theil–Sen), which a few steps or spikes do not move.

    The interval is Sen's, from the variance of Kendall's S without ties. It takes the samples for independent, which
    samples of memory are not quite: it is a little too narrow.

    Source: P. K. Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968), section 5.
    """
    t, y = np.asarray(times, float), np.asarray(values, float)
    first, second = np.triu_indices(len(t), 1)
    pairs = np.sort((y[second] - y[first]) / (t[second] - t[first]))
    n = len(t)
    spread = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, round((len(pairs) - spread) / 2))
    high = min(len(pairs) - 1, round((len(pairs) + spread) / 2))
    return Slope(float(np.median(pairs)), float(pairs[low]), float(pairs[high]))


@dataclass
class Watch:
    """Samples of every process of one server over time."""

    pid: int
    samples: dict[int, list[Held]] = field(default_factory=dict)

    def look(self) -> None:
        """Takes one sample of each process."""
        for held in held_by(self.pid):
            self.samples.setdefault(held.pid, []).append(held)

    def since(self, at_s: float) -> Iterator[tuple[str, list[Held]]]:
        """Each process that lives to the end: a name for people, and its samples from `at_s` on."""
        alive = set(family(self.pid))
        for pid, samples in self.samples.items():
            later = [held for held in samples if held.at_s >= at_s]
            if pid in alive and later:
                yield f"{samples[-1].role} ({pid})", later
