"""Archives of models, unpacked once: a replica starts from the folder, and one that changes later changes nothing.

A folder is called by the archive's SHA-256. It is unpacked by a process of its own, so that what an archive holds, and
how long it takes, is not the controller's trouble.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.core.errors import LoadError
from penstock.fleet.local import disused

_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip", ".mar")
_UNPACK = (
    "import sys; from pathlib import Path; from penstock.packaging.unpack import unpack; "
    "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
)


class Contents:
    """The unpacked archives below one folder."""

    def __init__(self, place: Path) -> None:
        self._place = place
        # By path, of an archive whose file is the same: a start from zero has no time to read gigabytes again.
        self._digests: dict[Path, tuple[tuple[int, ...], str]] = {}

    async def folder_of(self, model: str, expected: str = "") -> tuple[Path, str]:
        """What a replica serves: `model` itself, or the folder that it is unpacked into; and the archive's SHA-256, ""
        of what is none. `expected` is the digest that it has to have: an archive that is unpacked serves on, whatever
        became of its file.

        Raises:
            LoadError: it cannot be read or unpacked, or has another content.
        """
        archive = Path(model)
        stem = archive.name[: -len(_suffix(archive))] or "model"
        if expected:
            kept = self._place / expected / stem
            if await asyncio.to_thread(kept.is_dir):
                await asyncio.to_thread(disused.note_use, kept.parent)
                return kept, expected
        if not await asyncio.to_thread(_is_archive, archive):
            return archive, ""
        try:
            digest = await asyncio.to_thread(self._digest, archive)
        except OSError as error:
            raise LoadError(f"{archive} cannot be read: {error.strerror}") from error
        if expected and digest != expected:
            raise LoadError(
                f"{archive} is no longer the archive that this revision was made of, and a revision never changes: "
                "deploy again to serve the new one, or put the old one back"
            )
        folder = self._place / digest / stem
        if not await asyncio.to_thread(folder.is_dir):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            await _unpack([str(archive), str(folder)], folder)
        await asyncio.to_thread(disused.note_use, folder.parent)
        return folder, digest

    def _digest(self, archive: Path) -> str:
        with archive.open("rb") as file:
            facts = os.fstat(file.fileno())
            same = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            known, digest = self._digests.get(archive, ((), ""))
            if known != same:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._digests[archive] = (same, digest)
            return digest


async def _unpack(arguments: Sequence[str], folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _UNPACK, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode and not await asyncio.to_thread(folder.is_dir):  # two may unpack; one renames its folder
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise LoadError(f"{arguments[0]} cannot be unpacked: {last[0] if last else 'its process was ended'}")


def _is_archive(path: Path) -> bool:
    return bool(_suffix(path)) and path.is_file()


def _suffix(path: Path) -> str:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")
