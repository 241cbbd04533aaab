"""Memory that this process has freed and its C library still holds."""

from __future__ import annotations

import ctypes


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
