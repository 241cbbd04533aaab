"""Takes away what nobody has used for long: environments and unpacked archives beyond the newest."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Set
from pathlib import Path

MOST = 20  # of each kind, beside those in use; what is taken away is made again when it is needed
USED = ".used"  # its time says when something was last used


def note_use(place: Path) -> None:
    """Says that it is used now."""
    with contextlib.suppress(OSError):
        (place / USED).touch()
        os.utime(place / USED)


def prune(folder: Path, in_use: Set[str], most: int = MOST) -> list[str]:
    """The names of what was taken away from `folder`. Things whose names are `in_use` stay, and so does what has never
    been finished: it may be in the making."""
    entries: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for place in folder.iterdir():
            with contextlib.suppress(OSError):
                entries.append(((place / USED).stat().st_mtime, place))
    gone: list[str] = []
    for _, place in sorted(entries, reverse=True)[most:]:
        if place.name not in in_use:
            (place / USED).unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            for beside in folder.glob(f"{place.name}.*"):
                beside.unlink(missing_ok=True)
            gone.append(place.name)
    return gone
