"""Files on a shelf: bounded in size, number and age, and each visible to its owner only."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from penstock.core.batches import StoredFile
from penstock.core.errors import Internal, NotFound, Overloaded, QuotaExceeded, TooLarge
from penstock.runtime.language.shelves import Shelf

log = logging.getLogger("penstock.batches")

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


class _Head(msgspec.Struct):
    """What the shelf keeps of a file beside its content."""

    owner: str
    file: StoredFile


@dataclass(slots=True)
class _Kept:
    owner: str
    file: StoredFile
    there: bool = False  # on the shelf: until then nobody sees it
    used: int = 0  # by batches under way
    finished: bool = False  # a batch has read it, or written it: such files go first


class KeptFiles:
    """Files by id, the oldest first."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float], shelf: Shelf) -> None:
        self._bounds = bounds
        self._clock = clock
        self._shelf = shelf
        self._kept: dict[str, _Kept] = {}

    async def restore(self) -> None:
        """Takes up what the shelf holds."""
        found: list[_Kept] = []
        for id, text in (await self._shelf.heads()).items():
            try:
                head = msgspec.json.decode(text, type=_Head)
            except msgspec.DecodeError as error:  # of another release
                log.error("file_unreadable", extra={"file": id, "reason": str(error)})
                continue
            found.append(_Kept(head.owner, head.file, True, finished=head.file.purpose != "batch"))
        self._kept = {kept.file.id: kept for kept in sorted(found, key=lambda kept: kept.file.created_at)}

    async def add(
        self, owner: str, name: str, content: bytes, purpose: str, keep_s: float | None = None, id: str = ""
    ) -> StoredFile:
        """The file, kept; what a batch wrote goes first again. With an `id`, in the place of what has it.

        Raises: TooLarge; QuotaExceeded, Overloaded when there is no room.
        """
        if purpose == "batch" and len(content) > self._bounds.file_bytes:
            raise TooLarge(f"the file has {len(content)} bytes; at most {self._bounds.file_bytes} are kept of one file")
        self.forget_old()
        self._kept.pop(id, None)
        self._make_room(owner, len(content))
        now = self._clock()
        expires = now + min(KEEP_S, KEEP_S if keep_s is None else keep_s)
        file = StoredFile(id or f"file-{uuid.uuid4().hex}", name, purpose, len(content), int(now), int(expires))
        kept = self._kept[file.id] = _Kept(owner, file, finished=purpose != "batch")
        try:
            await self._shelf.put(file.id, msgspec.json.encode(_Head(owner, file)), content)
        except BaseException:
            if self._kept.get(file.id) is kept:
                del self._kept[file.id]
            self._shelf.discard(file.id)
            raise
        kept.there = True
        return file

    def find(self, owner: str, id: str) -> StoredFile:
        return self._find(owner, id).file

    async def content(self, owner: str, id: str) -> bytes:
        self._find(owner, id)
        return await self._shelf.body(id)

    def of(self, owner: str) -> list[StoredFile]:
        """The owner's, the newest first."""
        self.forget_old()
        return [kept.file for kept in reversed(self._kept.values()) if kept.owner == owner and kept.there]

    def hold(self, owner: str, id: str) -> None:
        """The file stays until it is released as often."""
        self._find(owner, id).used += 1

    def hold_again(self, owner: str, id: str) -> bool:
        """Whether the file is there, as old as it may be: its batch goes on, and held it in an earlier process."""
        kept = self._kept.get(id)
        if kept is None or kept.owner != owner:
            return False
        kept.used += 1
        return True

    def release(self, id: str) -> None:
        kept = self._kept.get(id)
        if kept is not None:
            kept.used -= 1
            kept.finished = True

    def finish(self, id: str) -> None:
        """A batch has read the file."""
        if (kept := self._kept.get(id)) is not None:
            kept.finished = True

    def held(self, owner: str, id: str) -> bool:
        return self._find(owner, id).used > 0

    async def remove(self, owner: str, id: str) -> None:
        self._find(owner, id)
        del self._kept[id]
        await self._shelf.drop(id)

    def _find(self, owner: str, id: str) -> _Kept:
        self.forget_old()
        kept = self._kept.get(id)
        if kept is None and self._shelf.damaged(id):
            raise Internal(f"what was kept of {id} is damaged; the server's log says where")
        if kept is None or kept.owner != owner or not kept.there:
            raise NotFound(f"No such File object: {id[:128]}")
        return kept

    def forget_old(self) -> None:
        """Files whose time is over go. Called now and then, and before each look."""
        now = self._clock()
        for id in [id for id, kept in self._kept.items() if kept.file.expires_at <= now and not kept.used]:
            self._forget(id)

    def _forget(self, id: str) -> None:
        del self._kept[id]
        self._shelf.discard(id)

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
            self._forget(one.file.id)
        return True
