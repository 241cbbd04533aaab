"""Archives of strangers (.zip, .mar, .tar, .tar.gz, .tgz) into a folder: nothing outside it, nothing left on refusal.

What keeps an archive in. Each name is taken apart and refused unless it leads down; each file and folder is made
relative to its open parent and never through a link, so what the disk holds cannot change where a name leads. Links are
made last, when nothing is written any more, and each is then followed to see where it ends. Everything goes into a
hidden folder beside the wished one, which is renamed when it is whole and removed otherwise.

Only files, folders and links that stay inside come out, without the archive's permissions and owners. Hard links,
devices, pipes, sparse files, encrypted entries and equal names (upper and lower case are equal, as on other machines)
are refused. Sizes are counted as they come: what an archive says about itself is not believed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from penstock.core.errors import AlreadyExists, InvalidInput, LoadError, NotFound, TooLarge
from penstock.packaging.entries import Entry, Limits, entries_of, suffix_of

_CHUNK_BYTES = 1 << 20
_MOST_PARTS, _MOST_NAME_BYTES = 64, 255  # folders in folders; ext4's and XFS's longest name
_LINK_BYTES = 1024
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_archive(path: str | Path) -> bool:
    """Whether `path` is a file with an archive's name."""
    return bool(suffix_of(Path(path).name)) and Path(path).is_file()


@contextlib.contextmanager
def unpacked(paths: Iterable[str]) -> Iterator[dict[str, str]]:
    """A folder for each of `paths` that is an archive, called as the archive without its ending; gone at the end.

    Raises:
        InvalidInput, TooLarge, LoadError: as `unpack`.
    """
    paths = tuple(paths)
    if not any(map(is_archive, paths)):  # then no place for temporary files is needed, and none is left by a kill
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="penstock-archive-") as place:
        folders: dict[str, str] = {}
        for path in paths:
            if path not in folders and is_archive(path):
                own = Path(place, str(len(folders)))  # two archives may have one name
                own.mkdir()
                name = Path(path).name
                folder = own / (name[: -len(suffix_of(name))] or "model")
                unpack(Path(path), folder)
                folders[path] = str(folder)
        yield folders


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Makes `folder`, which must not be there, with what `archive` holds.

    Raises:
        NotFound: there is no such file.
        AlreadyExists: there is something at `folder`.
        InvalidInput: it is no archive, a broken one, or holds what may not come out; the message names the entry.
        TooLarge: it breaks a limit.
        LoadError: the disk is full or may not be written.
    """
    if not archive.is_file():
        raise NotFound(f"there is no archive {archive}")
    if os.path.lexists(folder):
        raise AlreadyExists(f"{folder} is already there")
    bounds = limits or Limits()
    try:
        hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            descriptor = os.open(hidden, _FOLDER)
            try:
                _fill(descriptor, hidden, entries_of(archive, bounds), bounds)
            finally:
                os.close(descriptor)
            hidden.chmod(0o755)
            hidden.rename(folder)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
    except OSError as error:
        raise LoadError(f"cannot unpack {archive}: {error.strerror or error}") from error


def _fill(root: int, path: Path, entries: Iterable[Entry], limits: Limits) -> None:
    seen: dict[tuple[str, ...], bool] = {}  # what two names may not share -> whether it is a folder
    links: list[tuple[tuple[str, ...], str]] = []
    for count, entry in enumerate(entries, 1):
        if count > limits.entries:
            raise TooLarge(f"the archive has more than {limits.entries} entries, the most allowed")
        parts = _parts(entry.name)
        if not parts:  # the archive's own root, as "./"
            if entry.kind != "folder":
                raise InvalidInput(f"{_shown(entry.name)} in the archive has no name")
            continue
        _claim(parts, entry, seen)
        if len(seen) > limits.entries:  # folders that no entry names are made too, up to 63 for one file
            raise TooLarge(f"more than {limits.entries} files and folders come out of the archive, the most allowed")
        if entry.kind == "folder":
            os.close(_open_folder(root, parts))
        elif entry.kind == "link":
            links.append((parts, _link_target(entry)))
        else:
            _write(root, parts, entry)
    for parts, target in links:
        parent = _open_folder(root, parts[:-1])
        try:
            os.symlink(target, parts[-1], dir_fd=parent)
        finally:
            os.close(parent)
    _check_links(path, links)


def _parts(name: str) -> tuple[str, ...]:
    """The parts of an entry's name. Raises: InvalidInput unless they lead down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{_shown(name)} in the archive is no UTF-8 text") from None
    if name.startswith("/") or "\\" in name or any(not character.isprintable() for character in name):
        raise InvalidInput(f"{_shown(name)} in the archive is absolute, or holds a backslash or a control character")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise InvalidInput(f"{_shown(name)} in the archive leads out of its folder")
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":
        raise InvalidInput(f"{_shown(name)} in the archive names a drive")
    if len(parts) > _MOST_PARTS or any(len(part.encode()) > _MOST_NAME_BYTES for part in parts):
        raise InvalidInput(f"{_shown(name)} in the archive is too long, or too many folders deep")
    return parts


def _claim(parts: Sequence[str], entry: Entry, seen: dict[tuple[str, ...], bool]) -> None:
    """Takes the name. Raises: InvalidInput when another entry has it."""
    keys = [unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold()) for part in parts]
    for length in range(1, len(keys)):
        if not seen.setdefault(tuple(keys[:length]), True):
            raise InvalidInput(f"{_shown(entry.name)} in the archive lies below what is no folder")
    key, is_folder = tuple(keys), entry.kind == "folder"
    if key in seen and not (is_folder and seen[key]):
        raise InvalidInput(f"{_shown(entry.name)} is in the archive twice, perhaps in another spelling")
    seen[key] = is_folder


def _open_folder(root: int, parts: Sequence[str]) -> int:
    """A descriptor of the folder, which is made where it is missing. The caller closes it."""
    descriptor = os.dup(root)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=descriptor)
            below = os.open(part, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(root: int, parts: Sequence[str], entry: Entry) -> None:
    parent = _open_folder(root, parts[:-1])
    try:
        with os.fdopen(os.open(parts[-1], _NEW, 0o644, dir_fd=parent), "wb") as file:
            while chunk := entry.read(_CHUNK_BYTES):
                file.write(chunk)
    finally:
        os.close(parent)


def _link_target(entry: Entry) -> str:
    """Where a link says that it leads. Raises: InvalidInput for what cannot be inside."""
    target = entry.target
    if target is None:
        data = entry.read(_LINK_BYTES + 1)
        try:
            target = data.decode()
        except UnicodeDecodeError:
            target = ""
    if not target or len(target) > _LINK_BYTES or target.startswith("/") or not target.isprintable() or "\\" in target:
        raise InvalidInput(f"the link {_shown(entry.name)} in the archive leads to {_shown(target)}")
    return target


def _check_links(path: Path, links: Sequence[tuple[tuple[str, ...], str]]) -> None:
    """Follows every link to its end: what each says for itself does not tell where a chain of them leads."""
    root = path.resolve()
    for parts, target in links:
        try:
            inside = path.joinpath(*parts).resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError):  # leads nowhere, or in a circle
            inside = False
        if not inside:
            name = _shown("/".join(parts))
            raise InvalidInput(f"the link {name} in the archive leads to {_shown(target)}, which is not in it")


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else f"{name[:50]}…{name[-49:]}")
