"""Files in this process's memory: bounded in size, number and age, and each visible to its owner only."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from penstock.core.batches import StoredFile
from penstock.core.errors import NotFound, Overloaded, QuotaExceeded, TooLarge

KEEP_S: Final = 7 * 24 * 3600.0  # the longest that a file or an ended batch is kept


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept at most. A caller's own part leaves room for others."""

    file_bytes: int = 64 << 20
    caller_bytes: int = 256 << 20
    all_bytes: int = 1 << 30
    caller_files: int = 1000
    all_files: int = 10_000
    caller_unfinished: int = 16  # batches
    all_unfinished: int = 128
    caller_batches: int = 500  # with those that ended; the oldest of these goes first


@dataclass(slots=True)
class _Kept:
    owner: str
    file: StoredFile
    content: bytes
    used: int = 0  # by batches under way
    finished: bool = False  # a batch has read it, or written it: such files go first


class KeptFiles:
    """Files by id, the oldest first."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float]) -> None:
        self._bounds = bounds
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    def add(self, owner: str, name: str, content: bytes, purpose: str, keep_s: float | None = None) -> StoredFile:
        """The file, kept; what a batch wrote goes first again.

        Raises: TooLarge; QuotaExceeded, Overloaded when there is no room.
        """
        if purpose == "batch" and len(content) > self._bounds.file_bytes:
            raise TooLarge(f"the file has {len(content)} bytes; at most {self._bounds.file_bytes} are kept of one file")
        self._forget_old()
        self._make_room(owner, len(content))
        now = self._clock()
        expires = now + min(KEEP_S, KEEP_S if keep_s is None else keep_s)
        file = StoredFile(f"file-{uuid.uuid4().hex}", name, purpose, len(content), int(now), int(expires))
        self._kept[file.id] = _Kept(owner, file, content, finished=purpose != "batch")
        return file

    def find(self, owner: str, id: str) -> StoredFile:
        return self._find(owner, id).file

    def content(self, owner: str, id: str) -> bytes:
        return self._find(owner, id).content

    def of(self, owner: str) -> list[StoredFile]:
        """The owner's, the newest first."""
        self._forget_old()
        return [kept.file for kept in reversed(self._kept.values()) if kept.owner == owner]

    def hold(self, owner: str, id: str) -> bytes:
        """The content; the file stays until it is released as often."""
        kept = self._find(owner, id)
        kept.used += 1
        return kept.content

    def release(self, id: str) -> None:
        kept = self._kept.get(id)
        if kept is not None:
            kept.used -= 1
            kept.finished = True

    def held(self, owner: str, id: str) -> bool:
        return self._find(owner, id).used > 0

    def remove(self, owner: str, id: str) -> None:
        self._find(owner, id)
        del self._kept[id]

    def _find(self, owner: str, id: str) -> _Kept:
        self._forget_old()
        kept = self._kept.get(id)
        if kept is None or kept.owner != owner:
            raise NotFound(f"No such File object: {id[:128]}")
        return kept

    def _forget_old(self) -> None:
        now = self._clock()
        for id in [id for id, kept in self._kept.items() if kept.file.expires_at <= now and not kept.used]:
            del self._kept[id]

    def _make_room(self, owner: str, size: int) -> None:
        bounds = self._bounds
        own = [kept for kept in self._kept.values() if kept.owner == owner]
        if not self._fits(own, size, bounds.caller_files, bounds.caller_bytes):
            raise QuotaExceeded("your files take all the room that they may; delete some", retry_after_s=60)
        if not self._fits(list(self._kept.values()), size, bounds.all_files, bounds.all_bytes):
            raise Overloaded("the files of all callers take all the room that there is", retry_after_s=60)

    def _fits(self, kept: list[_Kept], size: int, most: int, most_bytes: int) -> bool:
        """Whether another file fits, once the oldest finished ones have gone that must."""
        count = len(kept) + 1
        total = sum(one.file.size_bytes for one in kept) + size
        going = []
        for one in kept:
            if count <= most and total <= most_bytes:
                break
            if one.finished and not one.used:
                going.append(one)
                count -= 1
                total -= one.file.size_bytes
        if count > most or total > most_bytes:
            return False
        for one in going:
            del self._kept[one.file.id]
        return True
