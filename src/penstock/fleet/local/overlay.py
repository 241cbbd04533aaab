"""How penstock gets into an environment of other packages: a folder of links, behind those packages.

The folder holds links to the running penstock and to the distributions that it requires, each as they are installed
beside the controller, and nothing else. A `.pth` file puts the folder at the end of the path: whatever the environment
has itself comes first. So the replica speaks this very penstock's protocol between its processes, the user's numpy is
the one that both see, and what else lies beside the controller stays unseen. Nothing is installed twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import penstock

FOLDER = "penstock"
PTH = "zzz_penstock.pth"  # .pth files are read in the order of their names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MARKER_OF_EXTRA = re.compile(r"\bextra\s*==")


@dataclass(frozen=True, slots=True)
class Part:
    """One distribution: what it is called, and the entries of its site-packages that belong to it."""

    name: str
    version: str
    entries: tuple[Path, ...]


def parts() -> list[Part]:
    """Penstock and all that it requires, as installed here, by name."""
    own = Path(penstock.__file__).parent
    found: dict[str, Part] = {}
    wanted = ["penstock"]
    while wanted:
        name = normal(wanted.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for other systems, by its marker; or the running penstock lacks it too
        entries = {entry for entry in _entries(distribution) if name != "penstock" or entry.suffix == ".dist-info"}
        if name == "penstock":
            entries.add(own)
        found[name] = Part(name, distribution.version, tuple(sorted(entries)))
        wanted += _required(distribution)
    if "penstock" not in found:  # run from its source, without being installed
        found["penstock"] = Part("penstock", penstock.__version__, (own,))
    return [found[name] for name in sorted(found)]


def lay(folder: Path, site_packages: Path, made_of: list[Part]) -> None:
    """Makes the folder, and the line that puts it at the end of an environment's path. Raises: OSError."""
    folder.mkdir()
    for part in made_of:
        for entry in part.entries:
            link = folder / entry.name
            if not link.is_symlink():
                link.symlink_to(entry)
            elif link.readlink() != entry:
                _merge(link, entry)
    (site_packages / PTH).write_text(f"{folder}\n")


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _merge(link: Path, entry: Path) -> None:
    """Two distributions share a folder (a namespace package): it becomes one of links to what both have."""
    first = link.readlink()
    link.unlink()
    link.mkdir()
    for source in (first, entry):
        for child in source.iterdir():
            if not (link / child.name).is_symlink() and child.name != "__pycache__":
                (link / child.name).symlink_to(child)


def _entries(distribution: metadata.Distribution) -> Iterator[Path]:
    for file in distribution.files or ():
        top = file.parts[0]
        if top in ("..", "/", "__pycache__") or top.endswith((".pth", ".virtualenv")):
            continue
        at = Path(str(distribution.locate_file(top)))
        if at.exists():
            yield at


def _required(distribution: metadata.Distribution) -> Iterator[str]:
    for requirement in distribution.requires or ():
        text, _, marker = requirement.partition(";")
        if not _MARKER_OF_EXTRA.search(marker) and (match := _NAME.match(text.strip())):
            yield match[0]
