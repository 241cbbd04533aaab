"""The page of memory that a worker shares with its front: signs of life, and how far user code has come.

The worker writes, the front reads. Both numbers lie on eight bytes of their own, which a processor writes at once.
"""

from __future__ import annotations

import mmap
import os
import struct

_BEATS, _BEGUN = 0, 8  # offsets
_NUMBER = struct.Struct("<Q")


class Pulse:
    """One end of the page. `fd` stays the caller's."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        """Raises: OSError, ValueError."""
        self._page = mmap.mmap(fd, mmap.PAGESIZE, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)

    @property
    def beats(self) -> int:
        """Moves on while the process is scheduled and its interpreter lock moves."""
        return int(_NUMBER.unpack_from(self._page, _BEATS)[0])

    @property
    def begun(self) -> int:
        """The number of the last batch or stream that was handed to user code; they are begun in ascending order."""
        return int(_NUMBER.unpack_from(self._page, _BEGUN)[0])

    def beat(self) -> None:
        """Shows that the process runs."""
        _NUMBER.pack_into(self._page, _BEATS, self.beats + 1)

    def begin(self, number: int) -> None:
        """Notes that user code gets this batch or stream now."""
        _NUMBER.pack_into(self._page, _BEGUN, number)

    def close(self) -> None:
        self._page.close()


def pulse_fd() -> int:
    """A descriptor of a fresh page, which the caller closes. Raises: OSError."""
    fd = os.memfd_create("penstock-pulse", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd
