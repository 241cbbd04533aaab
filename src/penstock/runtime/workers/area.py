"""Anonymous shared memory between one writer and one reader.

The front makes every area and hands the worker its file descriptor: there is no name that anyone else could open, and
nothing is left behind when both processes die. Areas are sealed against shrinking, so that a reader can never be
made to fault by the other side; the writer lengthens its area when a message needs more, and the reader maps it anew
when a message says that it is longer than what it has mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

from penstock.core.errors import Internal

_STEP = 1 << 16  # areas are a multiple of this
_KEEP = 16 << 20  # memory that an idle area keeps; more goes back to the system after the message that needed it


class Area:
    """One direction of one slot. Belongs to one side; the other has its own for the same memory."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        self.fd = fd
        self._writable = writable
        self._map: mmap.mmap | None = None
        self._size = 0

    @classmethod
    def create(cls, *, writable: bool) -> Area:
        """A new area, empty. Raises: OSError (no more file descriptors or memory)."""
        fd = os.memfd_create("penstock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, writable=writable)

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return self._size

    def reserve(self, size: int) -> mmap.mmap:
        """The writer's mapping, at least `size` bytes long."""
        if self._map is None or size > self._size:
            length = -(-max(size, 2 * self._size) // _STEP) * _STEP
            os.ftruncate(self.fd, length)
            self._remap(length)
        assert self._map is not None
        return self._map

    def view(self, size: int) -> memoryview:
        """The reader's view of the first `size` bytes, read-only; the memory lives as long as the view.

        Raises:
            Internal: the area is not that long.
        """
        if self._map is None or size > self._size:
            length = os.fstat(self.fd).st_size
            if size > length:
                raise Internal(f"a message claims {size} bytes of shared memory, there are {length}")
            self._remap(length)
        return memoryview(self._map)[:size] if self._map is not None else memoryview(b"")

    def trim(self, used: int) -> None:
        """Gives memory back that the last message used and an ordinary one will not. The writer's call."""
        if used > _KEEP and self._map is not None:
            with contextlib.suppress(OSError, ValueError):
                self._map.madvise(mmap.MADV_REMOVE, _KEEP, self._size - _KEEP)

    def close(self) -> None:
        """Closes the descriptor; mappings end with the last view of them."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._map = None
        self._size = 0

    def _remap(self, length: int) -> None:
        # An old mapping is dropped, not closed: arrays that user code kept may still look into it.
        access = mmap.ACCESS_WRITE if self._writable else mmap.ACCESS_READ
        self._map = mmap.mmap(self.fd, length, access=access) if length else None
        self._size = length
