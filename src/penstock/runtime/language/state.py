"""The folder in which a server keeps what outlives it: files, batches and their answers, responses.

    serve.lock           held by the one server that uses the folder
    files/ID             one thing each: a line about it, its head (JSON), its body
    batches/ID, responses/ID
    batches/ID.lines     the journal of a batch: a line for each answer, with its checksum

A thing is written beside its place, synced, and renamed: it is there whole or not at all. A journal's line counts once
it is synced; one that is torn at the end was never told of. Everything that is read is checked against its digest, and
what does not fit is an error, never an answer. One thread does all of it, in the order it was asked for, so that a disk
which is slow or stuck keeps no loop waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import queue
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, ParamSpec, TypeVar

from penstock.core.errors import AlreadyExists, Internal, InvalidInput, Overloaded, PenstockError

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("penstock.state")

KINDS: Final = ("files", "batches", "responses")
_ID: Final = re.compile(r"[a-z]+[-_][0-9a-f]{32}")
_ABOUT: Final = re.compile(rb"penstock-state 1 (\d{1,12}) (\d{1,12}) ([0-9a-f]{64}) ([0-9a-f]{64})\n")
_LONGEST_ABOUT: Final = 256
_MOST_WAITING: Final = 4096  # calls: behind a disk that is stuck, no more memory is taken
_CLOSE_S: Final = 10.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class StateFolder:
    """One folder, this process's alone. `open` it, and close it when nobody uses its shelves any more."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self._path = path
        self._lock = lock
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="state", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, name: str) -> StateFolder:
        """The folder of that name, made if need be, for its owner only. Blocks.

        Raises:
            InvalidInput: it cannot be made or written, belongs to somebody else, or others may write into it.
            AlreadyExists: another server uses it.
        """
        path = Path(name).expanduser().absolute()
        try:
            for folder in (path, *(path / kind for kind in KINDS)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                facts = folder.stat()
                if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
                    raise InvalidInput(f"state {folder}: must be yours, and writable for nobody else (chmod 700)")
            lock = os.fdopen(os.open(path / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
        except OSError as error:
            raise InvalidInput(f"state {path}: cannot be used: {error.strerror}; name another folder") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for kind in KINDS:
                for left in (path / kind).glob("*.new"):  # of a process that was ended in the middle of a write
                    left.unlink()
        except BlockingIOError:
            lock.close()
            raise AlreadyExists(f"another server keeps its state in {path}; each needs a folder of its own") from None
        except OSError as error:
            lock.close()
            raise InvalidInput(f"state {path}: cannot be used: {error.strerror}; name another folder") from error
        return cls(path, lock)

    async def close(self) -> None:
        """Returns when all that was asked for is done, or the disk has been stuck for a while."""
        if self._lock.closed:
            return
        with contextlib.suppress(TimeoutError, PenstockError):
            async with asyncio.timeout(_CLOSE_S):
                await self.run(bool)  # they are done in their order
        self._calls.put(None)
        self._lock.close()

    def shelf(self, kind: str) -> FolderShelf:
        """The shelf of one of `KINDS`."""
        return FolderShelf(self, self._path / kind)

    def journal(self, kind: str) -> FolderJournal:
        """The journals of one of `KINDS`."""
        return FolderJournal(self, self._path / kind)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives back; it is done also when its caller is cancelled. Raises: Overloaded, Internal."""
        if self._calls.qsize() >= _MOST_WAITING:
            raise Overloaded("the folder of the server's state does not keep up", retry_after_s=10)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, failure: BaseException | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(result)  # type: ignore[arg-type]  # a T then
            else:
                future.set_exception(failure)

        def work() -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = call(*args, **kwargs)
            except PenstockError as error:
                failure = error
            except OSError as error:
                failure = _told(error)
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, failure)

        self._calls.put(work)
        return await future

    def soon(self, call: Callable[[], None]) -> None:
        """Has `call` done in the thread, whenever it comes to it."""
        self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # outermost
                log.exception("state_call_failed")


def _told(error: OSError) -> PenstockError:
    log.error("state_failed", extra={"path": str(error.filename), "reason": str(error)})
    if error.errno in _FULL:
        return Overloaded("no room is left where the server keeps its state", retry_after_s=60)
    return Internal(f"where the server keeps its state: {error.strerror or error}")


@dataclass(frozen=True, slots=True)
class _About:
    """The first line of a thing. `start` is where its head begins."""

    start: int
    head: int
    body: int
    head_digest: bytes
    body_digest: bytes

    @classmethod
    def read(cls, text: bytes) -> _About | None:
        match = _ABOUT.match(text)
        return None if match is None else cls(match.end(), int(match[1]), int(match[2]), match[3], match[4])

    @property
    def size(self) -> int:
        return self.start + self.head + 1 + self.body


class FolderShelf:
    """`shelves.Shelf` in a folder."""

    def __init__(self, state: StateFolder, folder: Path) -> None:
        self._state = state
        self._folder = folder
        self._damaged: set[str] = set()

    async def put(self, id: str, head: bytes, body: bytes) -> None:
        """See `shelves.Shelf`, also of the methods below."""
        await self._state.run(self._put, _place(self._folder, id), head, body)

    async def body(self, id: str) -> bytes:
        return await self._state.run(self._body, _place(self._folder, id))

    async def drop(self, id: str) -> None:
        await self._state.run(self._drop, _place(self._folder, id))

    def discard(self, id: str) -> None:
        place = _place(self._folder, id)
        self._state.soon(lambda: place.unlink(missing_ok=True))

    async def heads(self) -> dict[str, bytes]:
        return await self._state.run(self._heads)

    def damaged(self, id: str) -> bool:
        return id in self._damaged

    # --- in the thread ---

    def _put(self, place: Path, head: bytes, body: bytes) -> None:
        about = b"penstock-state 1 %d %d %b %b\n" % (len(head), len(body), _digest(head), _digest(body))
        new = place.with_name(place.name + ".new")
        try:
            write_synced(new, [about, head, b"\n", body])
            new.replace(place)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        sync_folder(self._folder)

    def _body(self, place: Path) -> bytes:
        try:
            text = place.read_bytes()
        except FileNotFoundError:
            raise Internal(f"{place.name} is gone from where the server keeps its state") from None
        about = _About.read(text[:_LONGEST_ABOUT])
        body = b"" if about is None else text[about.start + about.head + 1 :]
        if about is None or len(text) != about.size or _digest(body) != about.body_digest:
            log.error("state_damaged", extra={"path": str(place)})
            raise Internal(f"what was kept of {place.name} is damaged; the server's log says where")
        return body

    def _drop(self, place: Path) -> None:
        place.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _heads(self) -> dict[str, bytes]:
        found: list[tuple[int, str, bytes]] = []
        for entry in os.scandir(self._folder):
            if not _ID.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            head, facts = None, entry.stat(follow_symlinks=False)
            with open(entry.path, "rb") as file:
                about = _About.read(file.read(_LONGEST_ABOUT))
                if about is not None and about.size == facts.st_size:
                    file.seek(about.start)
                    head = file.read(about.head)
            if about is None or head is None or _digest(head) != about.head_digest:
                log.error("state_damaged", extra={"path": entry.path})
                self._damaged.add(entry.name)
                continue
            found.append((facts.st_mtime_ns, entry.name, head))
        return {id: head for _, id, head in sorted(found)}


@dataclass(slots=True)
class _Lines:
    """Lines that wait for the disk together: one sync is for all of them."""

    texts: list[bytes] = field(default_factory=list)
    written: asyncio.Future[None] | None = None


class FolderJournal:
    """`shelves.Journal` in a folder."""

    def __init__(self, state: StateFolder, folder: Path) -> None:
        self._state = state
        self._folder = folder
        self._waiting: dict[str, _Lines] = {}
        self._taking = threading.Lock()

    async def append(self, id: str, line: bytes) -> None:
        """See `shelves.Journal`, also of the methods below."""
        place = _place(self._folder, id, ".lines")
        with self._taking:
            waiting = self._waiting.get(id)
            if waiting is None:
                waiting = self._waiting[id] = _Lines()
            waiting.texts.append(b"%08x %b\n" % (zlib.crc32(line), line))
        if waiting.written is None:
            waiting.written = asyncio.ensure_future(self._flush(id, place, waiting))
            waiting.written.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(waiting.written)

    async def _flush(self, id: str, place: Path, waiting: _Lines) -> None:
        try:
            await self._state.run(self._write, id, place)
        finally:  # when it did not come to the thread
            with self._taking:
                if self._waiting.get(id) is waiting:
                    del self._waiting[id]

    async def lines(self, id: str) -> tuple[list[bytes], str]:
        return await self._state.run(self._lines, _place(self._folder, id, ".lines"))

    def discard(self, id: str) -> None:
        place = _place(self._folder, id, ".lines")
        self._state.soon(lambda: place.unlink(missing_ok=True))

    # --- in the thread ---

    def _write(self, id: str, place: Path) -> None:
        with self._taking:
            texts = self._waiting.pop(id).texts
        new = not place.exists()
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(file).st_size
            try:
                _write_all(file, b"".join(texts))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)  # half a line in the middle would be taken for damage
                raise
        finally:
            os.close(file)
        if new:
            sync_folder(self._folder)

    def _lines(self, place: Path) -> tuple[list[bytes], str]:
        try:
            text = place.read_bytes()
        except FileNotFoundError:
            return [], ""
        *whole, torn = text.split(b"\n")
        found: list[bytes] = []
        for number, line in enumerate(whole, 1):
            checksum, _, content = line.partition(b" ")
            if checksum != b"%08x" % zlib.crc32(content):
                log.error("state_damaged", extra={"path": str(place), "line": number})
                return found, f"what was kept of its answers is damaged from number {number} on"
            found.append(content)
        if torn:
            os.truncate(place, len(text) - len(torn))
        return found, ""


def _place(folder: Path, id: str, ending: str = "") -> Path:
    """Where it lies. No id leads out of the folder. Raises: Internal."""
    if not _ID.fullmatch(id):
        raise Internal(f"{id!r:.80} is no id")
    return folder / f"{id}{ending}"


def write_synced(path: Path, parts: list[bytes]) -> None:
    """A new file for its owner only, which is on the disk when this returns."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        for part in parts:
            _write_all(file, part)
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """The folder's names are on the disk when this returns."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
