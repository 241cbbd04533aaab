"""Archives to open: good ones, and every way of being bad, made here byte by byte."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TAR, TGZ, ZIP = ".tar", ".tar.gz", ".zip"


@dataclass(frozen=True)
class Bad:
    """One archive that must be refused. `data` makes its bytes."""

    name: str
    suffix: str
    data: Callable[[], bytes]


def tar(*members: tuple[str, object], compress: bool = False, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar file of (name, content): bytes are a file, None a folder, a TarInfo itself (with its name)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content, io.BytesIO(bytes(content.size)) if content.isreg() else None)
                continue
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o777
                archive.addfile(member)
            else:
                assert isinstance(content, bytes)
                member.size, member.mode = len(content), 0o4777
                archive.addfile(member, io.BytesIO(content))
    data = buffer.getvalue()
    return gzip.compress(data, 1) if compress else data


def special(kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname, member.size = kind, target, size
    return member


def link(target: str) -> tarfile.TarInfo:
    return special(tarfile.SYMTYPE, target)


def zipped(*members: tuple[str, bytes | None], modes: Iterable[int] = ()) -> bytes:
    """A zip file of (name, content); None is a folder. `modes` are Unix modes, in order."""
    buffer = io.BytesIO()
    wished = [*modes, *[0] * len(members)]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for (name, content), mode in zip(members, wished, strict=False):
            info = zipfile.ZipInfo(name)
            info.external_attr, info.create_system = mode << 16, 3
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content or b"")
    return buffer.getvalue()


def long_directory(entries: int, comment_bytes: int, *, honest: bool) -> bytes:
    """A zip64 file whose entries have long comments. If not `honest`, it says that its record of how long its list of
    entries is lies elsewhere, and there is one that tells of a short list."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(entries):
            info = zipfile.ZipInfo(f"f{number}")
            info.comment = b"c" * comment_bytes
            archive.writestr(info, b"")
    data = buffer.getvalue()
    size, begin = struct.unpack_from("<LL", data, len(data) - 10)

    def record(bytes_: int) -> bytes:
        told = (44, 45, 45, 0, 0, entries, entries, bytes_, begin + 56)
        return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", *told)

    place = begin + 56 + size if honest else begin
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:begin] + record(46) + data[begin : begin + size] + record(size) + locator + end


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """A zip file with a name that the library would not write, of the same length."""
    assert len(old) == len(new) and data.count(old) == 2
    return data.replace(old, new)


def raw_header(data: bytes, at: int, value: bytes) -> bytes:
    """A tar file whose first header has other bytes, with the right checksum."""
    header = bytearray(data[:512])
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def pax(name: str, records: dict[str, str], content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size, member.pax_headers = len(content), records
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zeros(megabytes: int) -> bytes:
    return bytes(megabytes << 20)


def lying_zip() -> bytes:
    """A file that says it is ten bytes long, and holds 16 MiB."""
    data = zipped(("model.onnx", zeros(16)))
    size = struct.pack("<L", 16 << 20)
    assert data.count(size) >= 1
    return data.replace(size, struct.pack("<L", 10))


def overlapping_zip() -> bytes:
    """One compressed file of a megabyte that a thousand entries share, as the better zip bombs do."""
    data = zipped(("a0000", zeros(1)))
    at = data.index(b"PK\x01\x02")
    body, entry, end = data[:at], data[at : data.index(b"PK\x05\x06")], bytearray(data[data.index(b"PK\x05\x06") :])
    count = 1000
    entries = b"".join(entry.replace(b"a0000", b"a%04d" % number) for number in range(count))
    end[8:16] = struct.pack("<HHL", count, count, len(entries))
    return body + entries + bytes(end)


def many(count: int, make: Callable[..., bytes]) -> bytes:
    return make(*((f"f{number}", b"") for number in range(count)))


NAMES = {
    "dot-dot": "../outside", "dot-dot inside": "a/../../outside", "absolute": "/tmp/outside", "two slashes": "//tmp/outside",
    "backslash": "..\\outside", "drive": "C:/outside", "control": "a\x1bb", "newline": "a\nb", "long": "x" * 256,
    "deep": "a/" * 100 + "b", "only dots": "..",
}  # fmt: skip
PAIRS = {
    "same": ("a", "a"),
    "case": ("Model", "model"),
    "accents": ("\u00e9", "e\u0301"),
    "wide": ("\uff41", "a"),
    "file below file": ("a", "a/b"),
}

BAD = [
    *(Bad(f"tar name {key}", TAR, lambda name=name: tar((name, b"x"))) for key, name in NAMES.items()),
    *(Bad(f"tar folder {key}", TAR, lambda name=name: tar((name, None))) for key, name in NAMES.items()),
    *(Bad(f"zip name {key}", ZIP, lambda name=name: zipped((name, b"x"))) for key, name in NAMES.items()),
    *(Bad(f"tar twice {key}", TAR, lambda pair=pair: tar(*((name, b"x") for name in pair))) for key, pair in PAIRS.items()),
    *(Bad(f"zip twice {key}", ZIP, lambda pair=pair: zipped(*((name, b"x") for name in pair))) for key, pair in PAIRS.items() if key != "same"),
    Bad("file over folder", TAR, lambda: tar(("a/b", b"x"), ("a", b"x"))),
    Bad("link over file", TAR, lambda: tar(("a", b"x"), ("a", link("b")))),
    Bad("file through link", TAR, lambda: tar(("a", link("/tmp")), ("a/outside", b"x"))),
    Bad("file through inner link", TAR, lambda: tar(("b", None), ("a", link("b")), ("a/c", b"x"))),
    Bad("absolute link", TGZ, lambda: tar(("a", link("/etc/passwd")), compress=True)),
    Bad("link leaving", TAR, lambda: tar(("a/b", link("../../outside")))),
    Bad("link to the parent", TAR, lambda: tar(("a", link("..")))),
    Bad("chain of links leaving", TAR, lambda: tar(("x", link(".")), ("y", link("x/..")))),
    Bad("links in a circle", TAR, lambda: tar(("x", link("y")), ("y", link("x")))),
    Bad("link to nothing", TAR, lambda: tar(("x", link("nothing")))),
    Bad("empty link", TAR, lambda: tar(("x", link("")))),
    Bad("hard link", TAR, lambda: tar(("a", b"x"), ("b", special(tarfile.LNKTYPE, "a")))),
    Bad("hard link leaving", TAR, lambda: tar(("b", special(tarfile.LNKTYPE, "../../etc/passwd")))),
    Bad("character device", TAR, lambda: tar(("b", special(tarfile.CHRTYPE)))),
    Bad("block device", TAR, lambda: tar(("b", special(tarfile.BLKTYPE)))),
    Bad("pipe", TAR, lambda: tar(("b", special(tarfile.FIFOTYPE)))),
    Bad("unknown kind", TAR, lambda: raw_header(tar(("b", b"x"), format=tarfile.USTAR_FORMAT), 156, b"Z")),
    Bad("negative size", TAR, lambda: raw_header(tar(("b", b"x"), format=tarfile.GNU_FORMAT), 124, b"\xff" * 12)),
    Bad("huge size", TAR, lambda: raw_header(tar(("b", b"x"), format=tarfile.GNU_FORMAT), 124, b"\x80" + b"\0" * 3 + b"\x7f" * 8)),
    Bad("negative pax size", TAR, lambda: pax("b", {"size": "-512"})),
    Bad("negative pax header", TAR, lambda: raw_header(pax("b", {"comment": "x"}), 124, b"\xff" * 11 + b"\0")),
    Bad("sparse", TAR, lambda: pax("b", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}, b"1\n0\n1\n")),
    Bad("sparse map", TAR, lambda: pax("b", {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)})),
    Bad("old sparse", TAR, lambda: raw_header(tar(("b", b"x"), format=tarfile.GNU_FORMAT), 156, b"S")),
    Bad("pax header of a gigabyte", TGZ, lambda: gzip.compress(raw_header(tar(("b", zeros(16)), format=tarfile.USTAR_FORMAT), 156, b"x"), 1)),
    Bad("long name of a gigabyte", TGZ, lambda: gzip.compress(raw_header(tar(("b", zeros(16)), format=tarfile.USTAR_FORMAT), 156, b"L"), 1)),
    Bad("name with a NUL", ZIP, lambda: renamed(zipped(("a_outside", b"x")), b"a_outside", b"a\0outside")),
    Bad("no UTF-8", TAR, lambda: raw_header(tar(("b", b"x"), format=tarfile.USTAR_FORMAT), 0, b"\xff\xfe")),
    Bad("zip link leaving", ZIP, lambda: zipped(("a", b"../../outside"), modes=[stat.S_IFLNK | 0o777])),
    Bad("zip absolute link", ZIP, lambda: zipped(("a", b"/etc/passwd"), modes=[stat.S_IFLNK | 0o777])),
    Bad("zip long link", ZIP, lambda: zipped(("a", b"a" * 5000), modes=[stat.S_IFLNK | 0o777])),
    Bad("zip binary link", ZIP, lambda: zipped(("a", b"\xff\xfe"), modes=[stat.S_IFLNK | 0o777])),
    Bad("zip pipe", ZIP, lambda: zipped(("a", b""), modes=[stat.S_IFIFO | 0o666])),
    Bad("zip device", ZIP, lambda: zipped(("a", b""), modes=[stat.S_IFCHR | 0o666])),
    Bad("zip encrypted", ZIP, lambda: encrypted()),
    Bad("zip bomb", ZIP, lambda: zipped(("model.onnx", zeros(20)))),
    Bad("zip that lies", ZIP, lambda: lying_zip()),
    Bad("zip of shared data", ZIP, lambda: overlapping_zip()),
    Bad("tar bomb", TGZ, lambda: tar(("model.onnx", zeros(20)), compress=True)),
    Bad("many files", TGZ, lambda: gzip.compress(many(3000, tar), 1)),
    Bad("many files zipped", ZIP, lambda: many(3000, zipped)),
    Bad("cut tar", TAR, lambda: tar(("a", bytes(5000)))[:2000]),
    Bad("cut gzip", TGZ, lambda: tar(("a", bytes(range(256)) * 500), compress=True)[:300]),
    Bad("cut zip", ZIP, lambda: zipped(("a", bytes(range(256)) * 500))[:300]),
    Bad("zip with a wrong checksum", ZIP, lambda: wrong_checksum()),
    Bad("empty file", TAR, lambda: b""),
    Bad("empty zip file", ZIP, lambda: b"PK"),
    Bad("text", TGZ, lambda: b"hello, I am no archive at all " * 100),
    Bad("list of entries without end", ZIP, lambda: long_list()),
]  # fmt: skip


def encrypted() -> bytes:
    data = bytearray(zipped(("a", b"x")))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def wrong_checksum() -> bytes:
    data = bytearray(zipped(("a", b"hello")))
    data[data.index(b"PK\x01\x02") + 16] ^= 0xFF
    return bytes(data)


def long_list() -> bytes:
    """A zip file's end that promises a list of entries of 100 MB, and has it."""
    entry = zipped(("a", b""))
    at = entry.index(b"PK\x01\x02")
    one = entry[at : entry.index(b"PK\x05\x06")]
    count = (20 << 20) // len(one)
    return one * count + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, count * len(one), 0, 0)
