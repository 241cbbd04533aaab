"""The log of a replica: one file that its process writes to by itself, so that it needs nobody who reads.

Whoever looks after it keeps it small: what is above a bound is copied aside and cut off. The file is open for appending
in the replica, so that its next line begins at the new end. Lines written between the end of the copy and the cut are
lost; that is a matter of microseconds, and of a replica that writes megabytes. One who follows reads the copy first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

BOUND_BYTES = 8 << 20
NAME, OLDER = "log", "log.1"

_LOOK_S = 0.2  # of one who follows
_BLOCK_BYTES = 1 << 16
_LINE_BYTES = 64 << 10  # of one line as it is handed on; what is longer comes in pieces


def open_to_write(folder: Path) -> int:
    """A descriptor that appends to the replica's log. Raises: OSError."""
    return os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def bound(folder: Path, most_bytes: int = BOUND_BYTES) -> bool:
    """Whether the log was above its bound, and was cut: then what it held is in another file. That has more than the
    bound when it is all of it, and just the bound when a replica wrote faster than anyone looked.

    Raises:
        OSError: the disk is full. The log is cut then too: what is left of it matters less than what else is there.
    """
    path = folder / NAME
    try:
        if path.stat().st_size <= most_bytes:
            return False
        new = folder / f"{OLDER}.new"
        try:
            with path.open("rb") as file, new.open("wb") as copy:
                os.fchmod(copy.fileno(), 0o600)
                size = os.fstat(file.fileno()).st_size
                if size > 2 * most_bytes:
                    file.seek(size - most_bytes)
                shutil.copyfileobj(file, copy, _BLOCK_BYTES)
            new.replace(folder / OLDER)
        finally:
            os.truncate(path, 0)
            new.unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


def last_lines(folder: Path, count: int, end: int | None = None) -> list[str]:
    """The last lines, the newest last; of the current file only what is before `end`."""
    lines = _last_lines(folder / NAME, count, end)
    if len(lines) < count:
        lines = _last_lines(folder / OLDER, count - len(lines)) + lines
    return lines


async def follow(
    folder: Path, count: int, alive: Callable[[], bool], most_bytes: int = BOUND_BYTES
) -> AsyncIterator[str]:
    """The last `count` lines, then each further one, until `alive` is false and all is read."""
    position = await asyncio.to_thread(_whole_lines_end, folder / NAME)
    for line in await asyncio.to_thread(last_lines, folder, count, position):
        yield line
    rest = b""
    while True:
        going_on = alive()
        data, position = await asyncio.to_thread(_more, folder, position, most_bytes)
        *whole, rest = (rest + data).split(b"\n")
        for one in whole:
            yield one.decode(errors="replace")
        if len(rest) > _LINE_BYTES:
            yield rest.decode(errors="replace")
            rest = b""
        if not data:
            if not going_on:
                break
            await asyncio.sleep(_LOOK_S)
    if rest:
        yield rest.decode(errors="replace")


def _more(folder: Path, position: int, most_bytes: int) -> tuple[bytes, int]:
    """What was written after `position`, a part of it at most, and the position after that."""
    path = folder / NAME
    if _size(path) < position:  # it was cut: what was not yet read is in the copy, then the new beginning follows
        if _size(folder / OLDER) > max(position, most_bytes):
            path = folder / OLDER
        else:
            position = 0
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(position)
        data = file.read(_BLOCK_BYTES)
        return data, position + len(data)
    return b"", position


def _last_lines(path: Path, count: int, end: int | None = None) -> list[str]:
    if count <= 0:
        return []
    blocks: list[bytes] = []
    newlines = 0
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = size if end is None else min(size, end)
        while end > 0 and newlines <= count:
            begin = max(0, end - _BLOCK_BYTES)
            file.seek(begin)
            blocks.append(file.read(end - begin))
            newlines += blocks[-1].count(b"\n")
            end = begin
    text = b"".join(reversed(blocks)).decode(errors="replace")
    return text.split("\n")[:-1][-count:] if text.endswith("\n") else text.split("\n")[-count:] if text else []


def _whole_lines_end(path: Path) -> int:
    """Where the last line that is complete ends."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        begin = max(0, end - _LINE_BYTES)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        return begin + found + 1 if found >= 0 else end
    return 0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
