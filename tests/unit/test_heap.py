"""Memory that was freed goes back to the system when it is asked for."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from penstock.runtime.workers.heap import give_back


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_freed_memory_between_used_blocks_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    # Below the size from which every block is mapped by itself, and with one left in use at the end, so that the C
    # library cannot simply end its heap earlier.
    blocks = [libc.malloc(100_000) for _ in range(500)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    held = resident_bytes()
    for block in blocks[:-1]:
        libc.free(block)
    give_back()
    assert resident_bytes() < held - 40_000_000
    libc.free(blocks[-1])
