"""A model's files as one thing: which they are, a cheap fingerprint to see change, and a hash to name their content."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from penstock.core.errors import LoadError

_CHUNK_BYTES = 1 << 20
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~", ".lock")


def ignored(name: str) -> bool:
    """Whether a file or folder is no part of a model: hidden, still being written, or Python's own cache."""
    return name.startswith((".", "__pycache__")) or name.endswith(_UNFINISHED)


def place_of(path: Path) -> Path | None:
    """The file or folder that `path` means, `file.py:Name` being the file; None when it is nothing on a disk."""
    if path.exists():
        return path
    file = Path(str(path).rpartition(":")[0])
    return file if str(path).count(":") and file.exists() and str(file) not in ("", ".") else None


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of an artifact as (relative name, path), sorted by name.

    A folder's are all below it. A single file's are itself and its companions, whose names begin with its name: the
    weights that ONNX keeps outside (`model.onnx.data`, `model.onnx_data`).

    Raises:
        LoadError: a link leads out of the folder.
    """
    place = place_of(path)
    if place is None:
        return
    if place.is_dir():
        root = place.resolve()
        names = sorted(_walk(place, ""))
        for name in names:
            file = place / name
            if file.is_symlink() and not any(map(file.resolve().is_relative_to, _holders(root))):
                raise LoadError(f"{name} in {place} is a link that leads out of the model's folder")
            yield name, file
        return
    yield place.name, place
    if place.suffix != ".py":
        for beside in sorted(place.parent.iterdir()):
            name = beside.name
            if name.startswith((f"{place.name}.", f"{place.name}_")) and not ignored(name) and beside.is_file():
                yield name, beside


def _holders(root: Path) -> tuple[Path, ...]:
    """Where links of the folder `root` may lead: its versions, and what Hugging Face's cache keeps its contents in.

    Source: huggingface_hub, "Understand caching": models--OWNER--NAME/{blobs,snapshots/COMMIT}.
    """
    repository = root.parent.parent
    if root.parent.name == "snapshots" and repository.name.startswith("models--"):
        return root.parent, repository / "blobs"
    return (root.parent,)


def fingerprint(path: Path) -> str:
    """Text that changes when a file of the artifact is added, removed, replaced, grown or touched; reads no content."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name, file in files_of(path):
        try:
            status = file.stat()
        except FileNotFoundError:  # it was there a moment ago: the next look will tell
            continue
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode())
    return digest.hexdigest()


class Snapshot:
    """What an artifact's files were at one moment, without reading them. Files that come later are no change: models
    write caches beside themselves, and one that misses a file says so itself."""

    def __init__(self, path: Path) -> None:
        """Raises: LoadError when the files cannot be looked at."""
        self._path = path
        self._files = _statuses(path)

    def changed(self) -> str:
        """The name of a file that was replaced, rewritten, touched or removed since; "" when none was.

        Raises: LoadError when the files cannot be looked at.
        """
        now = _statuses(self._path)
        return next((name for name, status in self._files.items() if now.get(name) != status), "")


def _statuses(path: Path) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    try:
        for name, file in files_of(path):
            status = file.stat()
            found[name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error}") from error
    return found


def artifact_sha256(path: Path, unwanted: threading.Event | None = None) -> str:
    """The SHA-256 of an artifact's content, in hex. Of one file it is what `sha256sum` shows; of several it is over
    each name, size and hash in the order of names; "" for a model that is no file (a module's name, `echo`).

    Args:
        unwanted: when set, the work ends within a chunk, though a large file takes minutes.

    Raises:
        LoadError: a file cannot be read, a link leads out of the folder, or the hash is not wanted any more.
    """
    try:
        hashes = [(name, *_hash(file, unwanted)) for name, file in files_of(path)]
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error}") from error
    if len(hashes) == 1 and not path.is_dir():
        return hashes[0][2]
    if not hashes:
        return ""
    whole = hashlib.sha256()
    for name, size_bytes, digest in hashes:
        whole.update(f"{name}\0{size_bytes}\0{digest}\n".encode())
    return whole.hexdigest()


def _hash(file: Path, unwanted: threading.Event | None) -> tuple[int, str]:
    digest = hashlib.sha256()
    size_bytes = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            if unwanted is not None and unwanted.is_set():
                raise LoadError(f"{file} was not hashed to its end: loading it was given up")
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """Relative names of all files below `folder`. Links to folders are not followed: they could lead back."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name
