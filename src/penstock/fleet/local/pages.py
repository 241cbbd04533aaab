"""Keeps the files of deployments without a replica in the page cache, so that their next start reads no disk.

For each deployment one replica's files: the model's, and what its processes had mapped (libraries, weights). They are
read through now and then, which tells the kernel that they are in use; it stays free to drop them when memory is short,
and never more than a share of what is available is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("penstock.driver")

_INTERVAL_S = 20.0
_SHARE = 0.25  # of the memory that the machine says is available
_KEPT_S = 24 * 3600.0  # without a request: then it may be slow once
_BLOCK_BYTES = 4 << 20
_MOST_FILES = 20_000  # of one deployment


class Pages:
    """One thread, while there is something to keep."""

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._kept: dict[str, tuple[tuple[str, ...], float]] = {}
        self._stop = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, deployment: str, files: Iterable[str]) -> None:
        """These files from now on, of a deployment that has no replica any more."""
        self._kept[deployment] = (tuple(files), time.monotonic())
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="penstock-pages", daemon=True)
            self._thread.start()

    def release(self, deployment: str) -> None:
        """It has a replica again, which keeps them by itself."""
        self._kept.pop(deployment, None)

    async def close(self) -> None:
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        buffer = bytearray(_BLOCK_BYTES)
        while not self._stop:
            left = int(_available_bytes() * _SHARE)
            for deployment, (files, since) in sorted(self._kept.copy().items(), key=lambda item: -item[1][1]):
                if time.monotonic() - since > _KEPT_S:
                    self._kept.pop(deployment, None)
                    continue
                left = self._touch(deployment, files, buffer, left)
            self._wake.wait(self._interval_s)
            self._wake.clear()  # `close` stops first and wakes then, so that this loses nothing

    def _touch(self, deployment: str, files: Iterable[str], buffer: bytearray, left: int) -> int:
        for path in files:
            if self._stop or deployment not in self._kept:
                break
            with contextlib.suppress(OSError):
                size = os.stat(path).st_size
                if size <= left:
                    left -= size
                    _read_through(path, buffer)
        return left


def files_of(paths: Iterable[str], pids: Iterable[int]) -> list[str]:
    """Files below `paths`, and those that the processes have mapped. In a thread: it looks at the disk."""
    found: dict[str, None] = {}
    for path in paths:
        # `file.py:Name` names a file too.
        at = path if os.path.exists(path) else path.rpartition(":")[0]
        if os.path.isfile(at):
            found[at] = None
        elif os.path.isdir(at):
            for folder, _, names in os.walk(at):
                found.update((os.path.join(folder, name), None) for name in names)
                if len(found) > _MOST_FILES:
                    break
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(None, 5)
                if len(fields) == 6 and fields[5].startswith("/") and not fields[5].startswith(("/dev/", "/memfd:")):
                    found[fields[5]] = None
    return list(found)[:_MOST_FILES]


def resident_bytes(path: str | Path) -> int:
    """How much of a file the page cache holds. Source: mincore(2). Raises: OSError."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return 0
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as mapped:
            pages = -(-size // mmap.PAGESIZE)
            vector = (ctypes.c_ubyte * pages)()
            window = ctypes.c_char.from_buffer(mapped)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                address = ctypes.c_void_p(ctypes.addressof(window))
                if libc.mincore(address, ctypes.c_size_t(size), vector):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                del window  # the mapping cannot be closed under it
    return sum(page & 1 for page in vector) * mmap.PAGESIZE


def _read_through(path: str, buffer: bytearray) -> None:
    """Reads a file into nowhere; other threads run meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        position = 0
        while got := os.preadv(descriptor, [buffer], position):
            position += got
    finally:
        os.close(descriptor)


def _available_bytes() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable:"))
        return int(line.split()[1]) << 10
    return 0
