"""A folder of converted models: each entry is made once, whole or not at all, by one process at a time.

An entry's name is made of what it comes from (the bytes of its source) and how it was made, so that a moved or copied
source finds it again and a changed one does not. What lies in it is described by its manifest, which is written last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from penstock.core.errors import LoadError

MANIFEST = "manifest.json"
_BLOCK = 4 << 20
_SAMPLE, _SAMPLES = 64 << 10, 64  # of a large file's bytes, looked at before each use: 4 MiB take 2 ms


def entry(cache: Path, sources: Sequence[Path], how: str, make: Callable[[Path], None]) -> Path:
    """The folder of what `make` writes into an empty folder, from the cache when it is there and whole.

    Args:
        sources: the files it is made from: their bytes are part of its name.
        how: all else that decides the outcome: the converter's version and options.

    Raises:
        LoadError: the cache cannot be written; and whatever `make` raises.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = hashlib.sha256(json.dumps([how, *(_content(cache, path) for path in sources)]).encode()).hexdigest()[:32]
        folder = cache / name
        with _locked(cache / f"{name}.lock"):
            if not whole(folder):
                _build(folder, make)
    except OSError as error:
        raise LoadError(
            f"the cache of converted models at {cache} cannot be used: {error}; name another folder with the option "
            f'`cache`, or for GGUF files take engine = "llamacpp", which converts nothing'
        ) from error
    return folder


def forget(folder: Path) -> None:
    """Removes an entry that proved to be unusable, so that the next `entry` makes it again."""
    with _locked(folder.with_name(f"{folder.name}.lock")):
        shutil.rmtree(folder, ignore_errors=True)


def whole(folder: Path) -> bool:
    """Whether all files of an entry are there as they were written; of large ones, samples are compared."""
    try:
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))
        return all(_fingerprint(folder / Path(name).name) == mark for name, mark in listed.items())
    except (OSError, ValueError, AttributeError):
        return False


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises LoadError when the disk below `folder` has less than `needed_bytes` left."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise LoadError(
            f"the conversion needs {needed_bytes >> 20} MiB of disk below {folder.parent}, and {free >> 20} MiB are "
            f"free: make room, or name another folder with the option `cache`"
        )


def _build(folder: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for left in folder.parent.glob(f"{folder.name}.part-*"):  # of a process that died; ours is the only one now
        shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    part.mkdir(mode=0o700)
    try:
        make(part)
        marks = {path.name: _fingerprint(path) for path in sorted(part.iterdir())}
        for name in marks:
            _to_disk(part / name)
        (part / MANIFEST).write_text(json.dumps(marks), "utf-8")
        _to_disk(part / MANIFEST)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other processes; the kernel lets go of the lock of one that died."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _content(cache: Path, path: Path) -> str:
    """SHA-256 of a file, remembered until its size, time or inode change: a large model takes seconds to read."""
    path = path.resolve()
    found = path.stat()
    mark = [found.st_size, found.st_mtime_ns, found.st_ino]
    note = cache / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.source"
    try:
        kept = json.loads(note.read_text("utf-8"))
        if kept["mark"] == mark:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    part = note.with_name(f"{note.name}.part-{os.getpid()}-{threading.get_ident()}")
    part.write_text(json.dumps({"mark": mark, "sha256": digest.hexdigest()}), "utf-8")
    part.replace(note)
    return digest.hexdigest()


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _SAMPLE * _SAMPLES:
            digest.update(file.read())
        else:
            for index in range(_SAMPLES):
                file.seek((size - _SAMPLE) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
