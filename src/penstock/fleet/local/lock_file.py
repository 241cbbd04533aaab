"""Reads a locked requirements file: which lines it has, and whether they say exactly what is to be installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from penstock.core.errors import LoadError

_MOST_BYTES = 4 << 20
# Lines that say where packages come from. Files within files (-r, -c, -e) would not be part of what is compared.
_OPTIONS = (
    "--index-url", "-i", "--extra-index-url", "--find-links", "-f", "--no-index", "--no-binary", "--only-binary",
    "--prefer-binary", "--require-hashes", "--pre", "--trusted-host",
)  # fmt: skip
_PINNED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*(={2,3}\s*[^\s;*,]+|@\s*\S+)\s*(;.*)?")


@dataclass(frozen=True, slots=True)
class Locked:
    """A file's lines, without comments and continuations. `text` is what is installed and compared."""

    text: str
    hashed: bool


def read(path: Path) -> Locked:
    """The file's content.

    Raises:
        LoadError: it cannot be read, or a line does not pin one version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise LoadError(f"requirements {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LoadError(f"requirements {path}: is no UTF-8 text") from error
    if len(data) > _MOST_BYTES:
        raise LoadError(f"requirements {path}: has more than {_MOST_BYTES >> 20} MiB")
    lines: list[str] = []
    hashed = False
    for line in _whole_lines(text):
        if line.startswith("-"):
            if re.split(r"[\s=]", line, maxsplit=1)[0] not in _OPTIONS:
                raise LoadError(
                    f"requirements {path}: {line[:100]!r} cannot stand in a locked file; name packages only"
                )
            lines.append(line)
            continue
        requirement, *hashes = re.split(r"\s+(?=--hash)", line)
        match = _PINNED.fullmatch(requirement.strip())
        if match is None:
            raise LoadError(
                f"requirements {path}: {requirement[:100]!r} does not pin one version; write NAME==VERSION "
                "(`pip freeze`, `uv pip compile` and `pip-compile` do)"
            )
        hashed = hashed or bool(hashes)
        if re.sub(r"[-_.]+", "-", match["name"]).lower() != "penstock":  # every environment has the running one
            lines.append(line)
    return Locked("\n".join(lines) + "\n", hashed)


def _whole_lines(text: str) -> list[str]:
    """Lines without comments, with continuations joined: as pip's documentation of the format has them."""
    joined = re.sub(r"\\\r?\n", " ", text)
    stripped = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in stripped if line]
