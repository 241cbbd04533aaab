"""A control group of its own for one worker: when it wants more memory than it may have, the kernel ends it alone.

Where groups can be made. With version 1, below this process's own group. With version 2 the kernel gives a group that
holds processes no groups with limits below it, so there it is made beside this process's own one: that works where a
service manager has put this process into a group below the one it delegated (systemd: `Delegate=yes` with
`DelegateSubgroup=`). Groups right below a slice or the root are left to the service manager. A container seldom may
make any; whoever asks then gets None.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from penstock.runtime.workers import cgroup

_NAME = "penstock"


class MemoryGroup:
    """One group. Whoever made it removes it when its processes are gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def create(
        cls, limit_bytes: int, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
    ) -> MemoryGroup | None:
        """An empty group that may hold `limit_bytes` of memory; None where this process may make none."""
        for parent in _parents(cgroup.folders(root, membership, "memory"), root):
            _sweep(parent)
            folder = parent / f"{_NAME}-{os.getpid()}-{secrets.token_hex(4)}"
            with contextlib.suppress(OSError):
                folder.mkdir()
                try:
                    _limit(folder, limit_bytes)
                except OSError:
                    folder.rmdir()
                    raise
                return cls(folder)
        return None

    def add(self, pid: int) -> None:
        """Moves a process into the group; what it starts later begins there. Raises: OSError."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        return cgroup.kills_of(self._folder) or 0

    def remove(self) -> bool:
        """Whether the group is gone now; it stays while a process in it is still ending."""
        try:
            self._folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _parents(folders: list[Path], root: Path) -> Iterator[Path]:
    if not folders:
        return
    own = folders[0]
    if (own / "memory.limit_in_bytes").exists():
        yield own
    elif own != root and own.parent != root and own.parent.suffix != ".slice":
        with contextlib.suppress(OSError):
            switch = own.parent / "cgroup.subtree_control"
            if "memory" not in switch.read_text().split():
                switch.write_text("+memory")
            yield own.parent


def _limit(folder: Path, limit_bytes: int) -> None:
    if (folder / "memory.limit_in_bytes").exists():
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        beside = {"memory.memsw.limit_in_bytes": str(limit_bytes)}
    else:
        (folder / "memory.max").write_text(str(limit_bytes))
        # What the worker has started goes with it.
        beside = {"memory.swap.max": "0", "memory.oom.group": "1"}
    for name, value in beside.items():  # kernels without swap accounting lack them
        with contextlib.suppress(OSError):
            (folder / name).write_text(value)


def _sweep(parent: Path) -> None:
    """Removes what servers that were killed have left: groups without a process, of a server that is no more."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{_NAME}-*-*"):
            pid = folder.name.split("-")[1]
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
