"""What an archive holds, one entry at a time, whatever its format. Nothing is written here, and no size is believed."""

from __future__ import annotations

import errno
import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from penstock.core.errors import InvalidInput, TooLarge

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip", ".mar")  # .mar is TorchServe's name for a zip file

_HEADER_BYTES = 1 << 20  # of one extended tar header: names and times, in a few hundred bytes
_DIRECTORY_BYTES = 16 << 20  # of a zip file's list of entries, which is read at once
_END = struct.Struct("<4s4H2LH")  # a zip file's last record, and the two that large ones have before it
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may come out of one archive: no more than `ratio` times its size, once that is over `free_bytes`."""

    total_bytes: int = 256 << 30
    entries: int = 100_000
    ratio: int = 100
    free_bytes: int = 256 << 20  # text and zeros may well grow a thousand times


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `read(n)` gives its next n bytes at most, until the next entry is asked for; `target` is a link's."""

    name: str
    kind: Literal["file", "folder", "link"]
    read: Callable[[int], bytes]
    target: str | None = None


def suffix_of(name: str) -> str:
    """The ending that makes a file's name an archive's, or ""."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def entries_of(archive: Path, limits: Limits) -> Iterator[Entry]:
    """The entries, in the archive's order.

    Raises:
        InvalidInput: no archive, a broken one, or an entry of a kind that may not come out.
        TooLarge: more comes out than is allowed.
        OSError: the file cannot be read.
    """
    with archive.open("rb") as file:
        begin = file.read(4)
        file.seek(0)
        size = archive.stat().st_size
        budget = _Budget(min(limits.total_bytes, max(limits.free_bytes, limits.ratio * size)))
        try:
            if begin[:2] == b"PK":
                yield from _zip_entries(file, size, budget)
            elif begin[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as inner:
                    yield from _tar_entries(inner, budget)
            else:
                yield from _tar_entries(file, budget)
        except (*_BROKEN, OSError) as error:
            raise _told(error) from None


# What the standard library raises for broken archives; ValueErrors and the like come out of damaged headers.
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, struct.error, ValueError, IndexError,
    KeyError, OverflowError, NotImplementedError, RecursionError,
)  # fmt: skip


def _told(error: Exception) -> Exception:
    """The error to raise: a disk's own, or what a broken archive is. EINVAL is a place before the file's begin."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno != errno.EINVAL:
        return error
    return InvalidInput(f"it is no archive, or a broken one: {error}")


class _Budget:
    """The bytes that may still come out."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._left = most

    def spend(self, size: int) -> None:
        """Raises: TooLarge."""
        self._left -= size
        if self._left < 0:
            raise TooLarge(f"more than {self.most} bytes come out of the archive, the most allowed for one of its size")


class _Counted:
    """A file as tarfile reads it, counting what comes out: headers, padding and what is skipped too."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, budget: _Budget) -> None:
        self._file = file
        self._budget = budget

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._budget.spend(len(data))
        return data


class _Member(tarfile.TarInfo):
    """A tar header, refused where the standard library would read as much into memory as it says, or loop."""

    def _proc_member(self, tar: Any) -> Any:
        extended = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.size < 0 or self.type == tarfile.GNUTYPE_SPARSE or (extended and self.size > _HEADER_BYTES):
            raise InvalidInput(f"a header of the archive says {self.size} bytes, or that a file has holes")
        return super()._proc_member(tar)  # type: ignore[misc]  # tarfile's own hook, which its stubs leave out

    def _holes(self, *_: object) -> None:
        raise InvalidInput("a file in the archive has holes (is sparse): pack it without")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _holes


def _tar_entries(file: IO[bytes] | gzip.GzipFile, budget: _Budget) -> Iterator[Entry]:
    with tarfile.open(fileobj=_Counted(file, budget), mode="r|", tarinfo=_Member) as tar:  # type: ignore[call-overload]  # read() is all it needs
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep all of them
            if member.size < 0:
                raise InvalidInput("an entry of the archive has a negative size")
            if member.isdir():
                yield Entry(member.name, "folder", _nothing)
            elif member.issym():
                yield Entry(member.name, "link", _nothing, member.linkname)
            elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
                content = tar.extractfile(member)
                yield Entry(member.name, "file", _nothing if content is None else _reading(content.read))
            else:
                raise InvalidInput(f"{member.name[:100]!a} in the archive is no file, folder or symbolic link")


def _zip_entries(file: IO[bytes], size: int, budget: _Budget) -> Iterator[Entry]:
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.orig_filename  # `filename` ends at the first NUL
            mode = info.external_attr >> 16
            if info.flag_bits & 0x1:
                raise InvalidInput(f"{name[:100]!a} in the archive is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InvalidInput(f"{name[:100]!a} in the archive is compressed by method {info.compress_type}")
            if info.is_dir():
                yield Entry(name, "folder", _nothing)
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise InvalidInput(f"{name[:100]!a} in the archive is no file, folder or symbolic link")
            with archive.open(info) as content:
                kind: Literal["file", "link"] = "link" if stat.S_ISLNK(mode) else "file"
                yield Entry(name, kind, _reading(content.read, budget))


def _reading(read: Callable[[int], bytes], budget: _Budget | None = None) -> Callable[[int], bytes]:
    """`read` with its errors told as ours, and counted where a budget is given."""

    def checked(size: int) -> bytes:
        try:
            data = read(size)
        except (*_BROKEN, OSError) as error:
            raise _told(error) from None
        if budget is not None:
            budget.spend(len(data))
        return data

    return checked


def _check_directory(file: IO[bytes], size: int) -> None:
    """Raises: TooLarge when a zip file's list of entries would fill the memory."""
    tail_bytes = min(size, (1 << 16) + _END.size + _END64_PLACE.size)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise InvalidInput("the archive is no zip file, or its end is missing")
    directory_bytes = _END.unpack_from(tail, at)[5]
    if at >= _END64_PLACE.size and tail.startswith(b"PK\x06\x07", at - _END64_PLACE.size):
        # The standard library takes the record right before this one, wherever this one says that it is: in an honest
        # archive the two places are the same, and in another one the record that is read must not be a different one.
        place = size - tail_bytes + at - _END64_PLACE.size - _END64.size
        if place < 0 or place != _END64_PLACE.unpack_from(tail, at - _END64_PLACE.size)[2]:
            raise InvalidInput("the archive is a broken zip file: its list of entries is not where it says")
        file.seek(place)
        record = file.read(_END64.size)
        if not record.startswith(b"PK\x06\x06"):
            raise InvalidInput("the archive is a broken zip file: it does not say where its list of entries is")
        directory_bytes = max(directory_bytes if directory_bytes != 0xFFFFFFFF else 0, _END64.unpack(record)[8])
    if directory_bytes > _DIRECTORY_BYTES:
        raise TooLarge(
            f"the archive's list of entries has {directory_bytes} bytes, at most {_DIRECTORY_BYTES} are read"
        )
    file.seek(0)


def _nothing(size: int) -> bytes:
    return b""
