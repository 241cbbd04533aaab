"""What this process's control group allows: processors and memory. Linux, version 1 and 2."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The processors this process may use: its affinity, cut by the CPU quotas of its groups. At least 1.

    A quota of 1.5 processors counts as 1: more threads than the quota would be stopped in every period.
    """
    cores = len(os.sched_getaffinity(0))
    for folder in folders(root, membership, "cpu"):
        quota = _quota(folder)
        if quota is not None:
            cores = min(cores, int(quota))
    return max(1, cores)


def oom_kills(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """How many processes of this group the kernel has killed for memory so far; None where it does not say."""
    for folder in folders(root, membership, "memory"):
        kills = kills_of(folder)
        if kills is not None:
            return kills
    return None


def kills_of(folder: Path) -> int | None:
    """How many processes of one group the kernel has killed for memory so far; None where it does not say."""
    for name in ("memory.events", "memory.oom_control"):
        for line in _read(folder / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def _quota(folder: Path) -> float | None:
    fields = _read(folder / "cpu.max").split()
    if not fields:
        fields = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
    try:
        quota, period = int(fields[0]), int(fields[1])
    except (ValueError, IndexError):
        return None  # "max", or no such file
    return quota / period if quota > 0 and period > 0 else None


def folders(root: Path, membership: Path, controller: str) -> list[Path]:
    """The folders of this process's group and of those above it, the innermost first."""
    folders: list[Path] = []
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        if controllers and not base.is_dir():
            base = root / controller
        at = base / path.strip("/")
        while True:
            folders.append(at)
            if at == base or base not in at.parents:
                break
            at = at.parent
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
