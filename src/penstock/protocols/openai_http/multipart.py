"""Reads `multipart/form-data` (RFC 7578) that is whole: forms with a file in them, as clients upload it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from penstock.core.errors import InvalidInput

_BOUNDARY: Final = re.compile(r'multipart/form-data\s*;(?:[^;]*;)*?\s*boundary="?([^";\s]{1,70})(?=[";\s]|$)', re.I)
_MOST_PARTS: Final = 32
_LONGEST_HEAD: Final = 8192  # bytes of a part's headers
_PARAMETER: Final = re.compile(r'(?:^|;)\s*(name|filename)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Part:
    """One member of a form. `filename` is None where it is no file."""

    content: bytes
    filename: str | None


def read_form(body: bytes | bytearray | memoryview, content_type: str) -> dict[str, Part]:
    """The members by name, the last of a name. Raises: InvalidInput."""
    found = _BOUNDARY.match(content_type[:1024])
    if found is None:
        raise InvalidInput("a file is sent as multipart/form-data with a boundary, as OpenAI's clients do",
                           problem="invalid_content_type")  # fmt: skip
    mark = b"--" + found[1].encode("latin-1")
    rest = bytes(body)
    at = rest.find(mark)
    if at != 0 and rest[at - 2 : at] != b"\r\n":
        raise _broken("its boundary does not occur")
    at += len(mark)
    parts: dict[str, Part] = {}
    for _ in range(_MOST_PARTS):
        if rest.startswith(b"--", at):
            return parts
        head_end = rest.find(b"\r\n\r\n", at, at + _LONGEST_HEAD)
        if not rest.startswith(b"\r\n", at) or head_end < 0:
            raise _broken("a part has no headers that end")
        end = rest.find(b"\r\n" + mark, head_end + 2)
        if end < 0:
            raise _broken("its last boundary is missing")
        name, filename = _names(rest[at + 2 : head_end])
        parts[name] = Part(rest[head_end + 4 : end], filename)
        at = end + 2 + len(mark)
    raise _broken(f"it has more than {_MOST_PARTS} parts")


def _names(head: bytes) -> tuple[str, str | None]:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            found = {match[1]: re.sub(r"\\(.)", r"\1", match[2]) for match in _PARAMETER.finditer(value)}
            if "name" in found:
                return found["name"], found.get("filename")
    raise _broken("a part has no name")


def _broken(why: str) -> InvalidInput:
    return InvalidInput(f"the form cannot be read: {why}", problem="invalid_multipart")
