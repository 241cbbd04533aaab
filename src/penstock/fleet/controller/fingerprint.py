"""Tells whether files changed although their paths did not, so that deploying a path again makes a new revision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from penstock.core.errors import InvalidInput
from penstock.fleet.spec import Run

# A model is a few files, or a folder of some. Of more only the first are looked at, in the order of their names.
_MOST_FILES = 10_000


def fingerprint(run: Run, must_exist: bool) -> str:
    """A digest of names, sizes and times of the run's files; "" for what is no path here. May block.

    Raises:
        InvalidInput: a path is relative, or is not there although it must be.
    """
    digest = hashlib.sha256()
    for key, text in (("model", run.model), ("graph", run.graph), ("requirements", run.requirements)):
        if not text:
            continue
        path = _path(text)
        if not path.is_absolute():
            raise InvalidInput(f"{key} is {text!r}; give an absolute path")
        if not path.exists():
            if must_exist:
                raise InvalidInput(f"{key}: there is no file or folder {path}")
            continue
        for name, size, modified in _files(path):
            digest.update(f"{key}\0{name}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _path(text: str) -> Path:
    """Of `file.py:Name` the file."""
    head, colon, name = text.rpartition(":")
    return Path(head) if colon and head.endswith(".py") and name.isidentifier() else Path(text)


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    if not path.is_dir():
        facts = path.stat()
        yield path.name, facts.st_size, facts.st_mtime_ns
        return
    found = 0
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            try:
                facts = (Path(folder) / name).stat()
            except OSError:
                continue
            yield os.path.relpath(os.path.join(folder, name), path), facts.st_size, facts.st_mtime_ns
            found += 1
            if found >= _MOST_FILES:
                return
