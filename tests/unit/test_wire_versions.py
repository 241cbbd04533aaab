"""F29: what crosses between the server's processes has a version, which changes with the messages."""

from __future__ import annotations

import dataclasses
import hashlib
import typing

import msgspec

from penstock.runtime.fronts import wire
from penstock.runtime.workers import frame

# Version and digest of the messages. When they changed: raise VERSION if a release had the old ones, and write both down.
WORKER = (1, "192a1f8519f83bc2")
FRONT = (1, "26cb39297d45cc4b")


def digest(union: object) -> str:
    """Of the names, tags, fields and types of everything that the messages of `union` can hold."""
    seen: dict[type, str] = {}

    def visit(kind: object) -> None:
        for argument in typing.get_args(kind):
            visit(argument)
        if not isinstance(kind, type) or kind in seen:
            return
        if issubclass(kind, msgspec.Struct):
            config = kind.__struct_config__
            seen[kind] = f"{kind.__name__} {config.tag} {config.array_like}"
        elif dataclasses.is_dataclass(kind):
            seen[kind] = kind.__name__
        else:
            return
        for name, field in typing.get_type_hints(kind).items():
            seen[kind] += f" {name}: {kind.__annotations__.get(name, '')}"
            visit(field)

    visit(union)
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()[:16]


def test_messages_of_workers_change_only_with_their_version() -> None:
    assert (frame.VERSION, digest(frame.Message)) == WORKER


def test_messages_of_fronts_change_only_with_their_version() -> None:
    assert (wire.VERSION, digest(wire.ToEngine | wire.ToFront)) == FRONT
