"""What a worker's memory does to it: its limit, and whether it was the kernel that killed it for memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping

from penstock.runtime.workers import cgroup
from penstock.runtime.workers.memory_group import MemoryGroup

log = logging.getLogger("penstock.worker")

_LOOK_S = 0.1  # between two looks at a worker's memory where the kernel does not watch it
# How old the count of kills must be that a death is held against. The kernel counts a kill at once and the process may
# take a second to give its memory back, so the newest count may hold this very death; an old one may hold others'.
_OLD_S = 5.0
_REMOVALS_S = (0.0, 0.1, 1.0, 5.0)  # a group stays while the last of what the worker started is ending


class Guard:
    """Over one process. `kill` is called with the reason when it has to end; `close` it when the process is gone."""

    def __init__(self, limit_bytes: int | None, kill: Callable[[str], None]) -> None:
        self._limit_bytes = limit_bytes
        self._kill = kill
        self._pid = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._group = MemoryGroup.create(limit_bytes) if limit_bytes is not None else None
        kills = cgroup.oom_kills()
        self._kills = (kills, kills)  # the count of an earlier look, and of the last one
        self._looked_at = self._loop.time()

    def watch(self, pid: int, fields: Mapping[str, object]) -> None:
        """Begins: to be called as soon as the process runs."""
        self._pid = pid
        if self._group is not None:
            try:
                self._group.add(pid)
                return
            except OSError as error:
                log.warning("memory_group_failed", extra={**fields, "error": error.strerror})
                self._remove(self._group)
                self._group = None
        if self._limit_bytes is not None:
            self._look()

    def look(self) -> None:
        """Takes notice of kills elsewhere. To be called a few times a second."""
        now = self._loop.time()
        if self._group is None and now - self._looked_at > _OLD_S:
            self._looked_at = now
            self._kills = (self._kills[1], cgroup.oom_kills())

    def verdict(self) -> str:
        """Why the kernel killed the process, when memory was the reason; else ""."""
        if self._group is not None:
            if self._group.kills and self._limit_bytes is not None:
                return f"the kernel killed it: it wanted more memory than {_readable(self._limit_bytes)}, its limit"
            return ""
        before, now = self._kills[0], cgroup.oom_kills()
        if before is not None and now is not None and now > before:
            return "the kernel killed it: out of memory"
        return ""

    def close(self) -> None:
        """The process is gone."""
        if self._timer is not None:
            self._timer.cancel()
        if self._group is not None:
            self._remove(self._group)

    def _look(self) -> None:
        held, limit = own_bytes(self._pid), self._limit_bytes
        if limit is not None and held > limit:
            self._kill(f"it had to be killed: it held {_readable(held)} of memory, its limit is {_readable(limit)}")
            return
        self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _remove(self, group: MemoryGroup, tried: int = 0) -> None:
        if not group.remove() and tried + 1 < len(_REMOVALS_S):
            self._loop.call_later(_REMOVALS_S[tried + 1], self._remove, group, tried + 1)


def own_bytes(pid: int) -> int:
    """Memory that a process holds itself, without the files that it has mapped; 0 when it is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm") as file:
        _, resident, shared, *_ = (int(pages) for pages in file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _readable(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
