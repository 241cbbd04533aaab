"""The API keys of a server: who may ask, what they are called, and how much of its language models they may use.

A key file holds one key per line; or it is TOML (its name ends in .toml), with a table for each caller:

    [alice]
    key = "…"
    tokens_per_minute = 20_000
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest

_NAME_DIGITS = 8  # of a key's SHA-256: tells callers apart, and nothing of the key


class ApiKey(NamedTuple):
    """A key and its caller's name, which logs and metrics may show."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one caller may use of a server's language models. None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and outputs together
    tokens_per_day: int | None = None  # in each 24 hours since the server's start
    max_running: int | None = None  # sequences generated at once
    weight: float = 1.0  # of the caller's share of an engine for which several wait


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of a server; without any, everybody may ask. `limits` are of those callers that have some, by name."""

    keys: tuple[ApiKey, ...] = ()
    limits: Mapping[str, KeyLimits] = field(default_factory=dict)


def named(key: str) -> ApiKey:
    """A key whose caller has no other name."""
    return ApiKey(key, f"key-{hashlib.sha256(key.encode()).hexdigest()[:_NAME_DIGITS]}")


def read(path: Path) -> Keys:
    """The keys in a file.

    Raises:
        InvalidInput: it cannot be read, holds no key, or a table of it has an unknown or impossible entry.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read api_key_file {path}: {getattr(error, 'strerror', None) or error}") from error
    if path.suffix == ".toml":
        return _tables(path, text)
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found:
        raise InvalidInput(f"api_key_file {path} holds no key: write one per line")
    return Keys(tuple(named(key) for key in found))


def _tables(path: Path, text: str) -> Keys:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"api_key_file {path} is no TOML: {error}") from None
    if not data:
        raise InvalidInput(f'api_key_file {path} holds no key: write a table for each caller, with key = "…"')
    keys, limits = [], {}
    for name, table in data.items():
        where = f"api_key_file {path}: [{name}]"
        if not isinstance(table, dict) or not isinstance(table.get("key"), str) or not table["key"]:
            raise InvalidInput(f'{where} must be a table with key = "…"')
        keys.append(ApiKey(table["key"], name))
        limits[name] = _limits(where, {key: value for key, value in table.items() if key != "key"})
    if len({key.key for key in keys}) != len(keys):
        raise InvalidInput(f"api_key_file {path} gives two callers the same key")
    return Keys(tuple(keys), limits)


def _limits(where: str, table: Mapping[str, object]) -> KeyLimits:
    known = [entry.name for entry in fields(KeyLimits)]
    for name, value in table.items():
        if name not in known:
            raise InvalidInput(f"{where} has {name}{nearest(name, known)}; it takes key, {', '.join(known)}")
        kinds = (int, float) if name == "weight" else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise InvalidInput(
                f"{where} has {name} = {value!r}; write a {'number' if name == 'weight' else 'whole number'} above 0"
            )
    return KeyLimits(**table)  # type: ignore[arg-type]  # checked above
