"""Memory that this process has freed and its C library still holds."""

from __future__ import annotations

import asyncio
import ctypes

# A heap in which blocks of every size come and go falls apart: its used part stays the same for hours, and the gaps in
# it grow by some KB a second for a long time. Once a minute costs nothing that could be measured: a millisecond where
# some MB are free, up to 40 ms after a burst that left hundreds.
_PERIOD_S = 60.0

_M_ARENA_MAX = -8  # malloc.h


def share_one() -> None:
    """Has the threads of this process share one heap. To be called before there are threads, in a process of our own.

    glibc gives threads heaps of their own, and `give_back` cannot empty their ends: what a model's load used in one of
    many threads would stay there. Nobody here allocates so much beside the loop's thread that they would wait for each
    other: the processor time of a request is the same within the noise of measurement.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Returns to the system what the C library keeps of freed memory, as far as whole pages are free.

    glibc keeps blocks of up to 32 MiB for later once it has seen one of their size freed, so without this the weights
    of models that were loaded here and have gone would go on counting. It takes milliseconds for 100 MB and the
    interpreter's lock is not held; call it in a thread, and seldom. Does nothing where the C library has no such call.

    Source: mallopt(3), M_MMAP_THRESHOLD; malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Info(ctypes.Structure):
    """Source: mallinfo2(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def in_use_bytes() -> int:
    """Bytes that this process has allocated and not freed: unlike resident memory, it does not hide what was put into
    room that others had freed before. Where the C library cannot say, resident memory that no file backs."""
    library = ctypes.CDLL(None)
    ask = getattr(library, "mallinfo2", None)
    if ask is None:
        with open("/proc/self/status") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:"))
    ask.restype = _Info
    info = ask()
    return int(info.uordblks) + int(info.hblkhd)


async def keep_small() -> None:
    """Gives back what is free now and then; until it is cancelled."""
    while True:
        await asyncio.sleep(_PERIOD_S)
        await asyncio.to_thread(give_back)
