"""Control groups of one replica: its share of the processors, its limit of memory, and a list of what runs in it.

Version 1 has a tree per controller; a replica gets a group in each that it needs, below the controller's own one. With
version 2 there is one tree, and the kernel gives a group that holds processes no groups with limits below it; so there
the groups are made beside this process's own one, which works where a service manager delegated the group above
(systemd: `Delegate=yes` with `DelegateSubgroup=`). Where neither may be made, `made` is empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

_PERIOD_US = 100_000  # the kernel's default
_LEAST_QUOTA_US = 1_000  # Source: kernel, sched-bwc: below a millisecond it is refused
_REMOVAL_S = 3.0  # a process in the kernel's hands, such as one that gives back gigabytes, takes its time to end
_DEPTH = 8  # of groups below a replica's, which it may have made itself


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica may take; None is no limit."""

    cpu: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """The groups of one replica, to be joined by its process, and which of its limits hold there."""

    folders: tuple[Path, ...] = ()
    cpu: bool = False
    memory: bool = False


def make(name: str, limits: Limits, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Made:
    """Groups called `name` with these limits. What cannot be made is left out."""
    unified = _own(root, membership, "")
    if unified is not None and (root / "cgroup.controllers").exists():
        return _make_unified(name, limits, unified, root)
    folders: list[Path] = []
    held = {"cpu": False, "memory": False}
    for controller, settings in (("memory", _memory_v1(limits)), ("cpu", _cpu_v1(limits)), ("pids", {})):
        own = _own(root, membership, controller)
        if own is None or (not settings and controller != "pids"):
            continue
        folder = _folder(own / name, settings)
        if folder is not None:
            folders.append(folder)
            held[controller] = True
    return Made(tuple(folders), held["cpu"], held["memory"])


def set_cpu(folders: Iterable[Path], cpu: float) -> None:
    """Gives the groups another share of the processors."""
    for folder in folders:
        with contextlib.suppress(OSError):
            if (folder / "cpu.max").exists():
                (folder / "cpu.max").write_text(f"{_quota(cpu)} {_PERIOD_US}")
            elif (folder / "cpu.cfs_quota_us").exists():
                (folder / "cpu.cfs_quota_us").write_text(str(_quota(cpu)))


def pids(folders: Iterable[Path]) -> set[int]:
    """All that runs in the groups and in groups below them."""
    found: set[int] = set()
    for folder in folders:
        for group in (folder, *_below(folder)):
            with contextlib.suppress(OSError, ValueError):
                found.update(map(int, (group / "cgroup.procs").read_text().split()))
    found.discard(0)  # of another namespace
    return found


def kill(folders: Sequence[Path]) -> None:
    """SIGKILL to all that runs in the groups."""
    for folder in folders:
        with contextlib.suppress(OSError):
            (folder / "cgroup.kill").write_text("1")  # version 2: also what is being forked
    for pid in pids(folders):
        if pid != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def kills_for_memory(folders: Iterable[Path], *, below: bool = True) -> int:
    """How many processes the kernel has killed in the groups because they wanted more memory than their limit. Groups
    `below` are the replica's own making: what dies in them, it replaces."""
    total = 0
    for folder in folders:
        # Version 2 counts in a group what happened below it, version 1 does not.
        alone = not below or (folder / "memory.events").exists()
        groups = [folder] if alone else [folder, *_below(folder)]
        for file in (group / name for group in groups for name in ("memory.events", "memory.oom_control")):
            with contextlib.suppress(OSError, ValueError):
                fields = dict(line.split() for line in file.read_text().splitlines())
                total += int(fields.get("oom_kill", 0))
    return total


def remove(folders: Iterable[Path], within_s: float = _REMOVAL_S) -> bool:
    """Whether the groups are gone now. In a thread: one stays while the last that was killed in it is ending, which is
    longer than anything of that process can be seen elsewhere."""
    by = time.monotonic() + within_s
    left = list(folders)
    while True:
        left = [folder for folder in left if not _remove(folder)]
        if not left or time.monotonic() > by:
            return not left
        time.sleep(0.02)


def leftovers(prefix: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Path]:
    """Groups where this process makes its own, whose names begin with `prefix`."""
    parents = {_own(root, membership, controller) for controller in ("memory", "cpu", "pids")}
    unified = _own(root, membership, "")
    if unified is not None and (root / "cgroup.controllers").exists():
        parents.add(_delegated(unified, root))
    found: list[Path] = []
    for parent in parents - {None}:
        with contextlib.suppress(OSError):
            found += [entry for entry in (parent or root).iterdir() if entry.name.startswith(prefix) and entry.is_dir()]
    return sorted(found)


def memory_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """The least memory limit of this process's own groups and those above, in bytes."""
    own = _own(root, membership, "memory") or _own(root, membership, "")
    least: int | None = None
    while own is not None and own != root and root in own.parents:
        for file in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                value = int((own / file).read_text())  # "max" is none
                if 0 < value < 1 << 62:
                    least = value if least is None else min(least, value)
        own = own.parent
    return least


def cpu_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """The least quota of processors of this process's own groups and those above."""
    own = _own(root, membership, "cpu") or _own(root, membership, "")
    least: float | None = None
    while own is not None and own != root and root in own.parents:
        with contextlib.suppress(OSError, ValueError):
            if (own / "cpu.max").exists():
                quota, period = (own / "cpu.max").read_text().split()
            else:
                quota, period = ((own / f"cpu.cfs_{which}_us").read_text() for which in ("quota", "period"))
            if int(quota) > 0:
                least = min(least or float("inf"), int(quota) / int(period))
        own = own.parent
    return least


def _own(root: Path, membership: Path, controller: str) -> Path | None:
    """This process's group in a controller's tree, "" for version 2's. None when it is not there."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        base = root if not controller else root / controllers if (root / controllers).is_dir() else root / controller
        own = base / path.strip("/")
        # In a container the path is often the host's, and the tree begins at the container.
        return own if own.is_dir() else base if base.is_dir() else None
    return None


def _make_unified(name: str, limits: Limits, own: Path, root: Path) -> Made:
    parent = _delegated(own, root)
    if parent is None:
        return Made()
    offered = _enabled(parent)
    settings: dict[str, str] = {}
    beside: dict[str, str] = {}
    cpu = limits.cpu is not None and "cpu" in offered
    memory = limits.memory_bytes is not None and "memory" in offered
    if cpu:
        settings["cpu.max"] = f"{_quota(limits.cpu or 0)} {_PERIOD_US}"
    if memory:
        settings["memory.max"] = str(limits.memory_bytes)
        # Half a replica is none: what the kernel ends, it ends whole.
        beside = {"memory.swap.max": "0", "memory.oom.group": "1"}
    folder = _folder(parent / name, settings, beside)
    return Made() if folder is None else Made((folder,), cpu, memory)


def _delegated(own: Path, root: Path) -> Path | None:
    if own == root or own.parent == root or own.parent.suffix == ".slice":
        return None  # what is right below a slice or the root is the service manager's
    return own.parent


def _enabled(parent: Path) -> set[str]:
    switch = parent / "cgroup.subtree_control"
    for controller in ("cpu", "memory"):
        with contextlib.suppress(OSError):
            if controller not in switch.read_text().split():
                switch.write_text(f"+{controller}")
    with contextlib.suppress(OSError):
        return set(switch.read_text().split())
    return set()


def _folder(folder: Path, settings: dict[str, str], beside: dict[str, str] | None = None) -> Path | None:
    """A new group with all of `settings`, and those `beside` that its kernel knows; None when it cannot be made."""
    if "memory.limit_in_bytes" in settings:
        beside = {"memory.memsw.limit_in_bytes": settings["memory.limit_in_bytes"]}  # swap is no way around it
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    try:
        for file, value in settings.items():
            (folder / file).write_text(value)
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    for file, value in (beside or {}).items():
        with contextlib.suppress(OSError):
            (folder / file).write_text(value)
    return folder


def _memory_v1(limits: Limits) -> dict[str, str]:
    return {} if limits.memory_bytes is None else {"memory.limit_in_bytes": str(limits.memory_bytes)}


def _cpu_v1(limits: Limits) -> dict[str, str]:
    if limits.cpu is None:
        return {}
    return {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(_quota(limits.cpu))}


def _quota(cpu: float) -> int:
    return max(_LEAST_QUOTA_US, round(cpu * _PERIOD_US))


def _remove(folder: Path) -> bool:
    for group in (*reversed(_below(folder)), folder):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _below(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """Groups below one, parents before children."""
    found: list[Path] = []
    if depth:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    found += [Path(entry.path), *_below(Path(entry.path), depth - 1)]
    return found
