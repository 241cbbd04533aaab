"""How much memory this process may still take: the machine's, cut by the limits of its control groups."""

from __future__ import annotations

from pathlib import Path

from penstock.runtime.workers import cgroup

_NO_LIMIT = 1 << 60  # version 1 writes almost 2^63 for none


def free_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say.

    Of a group: its limit less what it holds, where pages of files that lie unused count as free, as the kernel gives
    them up first. Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    found = [value for folder in cgroup.folders(root, membership, "memory") if (value := _left(folder)) is not None]
    available = _field(_text(meminfo).replace(":", " "), "MemAvailable")
    if available is not None:
        found.append(available * 1024)
    return min(found, default=None)


def total_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of the whole machine; None where the system does not say."""
    total = _field(_text(meminfo).replace(":", " "), "MemTotal")
    return None if total is None else total * 1024


def _left(folder: Path) -> int | None:
    for limit_name, used_name, unused_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
        if not (limit.isdigit() and used.isdigit()) or int(limit) >= _NO_LIMIT:
            continue
        unused = _field(_text(folder / "memory.stat"), unused_name) or 0
        return max(0, int(limit) - int(used) + min(unused, int(used)))
    return None


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[0] == name and parts[1].isdigit():
            return int(parts[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
