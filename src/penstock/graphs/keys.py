"""Reads the parts of a document that somebody wrote by hand: each wrong thing is told with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest


def mapping(value: object, where: str) -> Mapping[str, object]:
    """`value` as a mapping with text keys. Raises: InvalidInput."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where} is {_shown(value)}; a mapping belongs there")
    for key in value:
        if not isinstance(key, str):
            raise InvalidInput(f"{where} has the key {key!r}; write it in quotes")
    return value


def items(value: object, where: str) -> list[object]:
    """`value` as a list; None is empty. Raises: InvalidInput."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput(f"{where} is {_shown(value)}; a list belongs there")
    return value


def known(document: Mapping[str, object], allowed: Iterable[str], where: str) -> None:
    """Nothing, when every key is allowed. Raises: InvalidInput that names the nearest."""
    names = list(allowed)
    for key in document:
        if key not in names:
            raise InvalidInput(f"{where}: there is no {key!r}{nearest(key, names)}; there are {', '.join(names)}")


def text(document: Mapping[str, object], key: str, where: str, default: str = "") -> str:
    """The text under `key`. Raises: InvalidInput."""
    value = document.get(key)
    if value is None:
        return default
    if isinstance(value, (Mapping, list)):
        raise InvalidInput(f"{where}: {key} is {_shown(value)}; text belongs there")
    return str(value)


def number(
    document: Mapping[str, object], key: str, where: str, default: float | None = None, *, least: float = 0.0,
    above: bool = False,
) -> float | None:  # fmt: skip
    """The number under `key`. Raises: InvalidInput when it is none, or below `least` (with `above`: at or below)."""
    value = document.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise InvalidInput(f"{where}: {key} is {_shown(value)}; a number belongs there")
    if value < least or (above and value == least):
        raise InvalidInput(f"{where}: {key} is {value:g}; it is {'above' if above else 'at least'} {least:g}")
    return float(value)


def whole(document: Mapping[str, object], key: str, where: str, default: int, *, least: int = 0, most: int) -> int:
    """The whole number under `key`. Raises: InvalidInput."""
    value = document.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput(f"{where}: {key} is {_shown(value)}; a whole number from {least} to {most} belongs there")
    return value


def texts(value: object, where: str) -> dict[str, str]:
    """`value` as a mapping of text to text; None is empty. Raises: InvalidInput."""
    if value is None:
        return {}
    found = mapping(value, where)
    for key, each in found.items():
        if not isinstance(each, str):
            raise InvalidInput(f"{where}: {key} is {_shown(each)}; text belongs there")
    return {key: str(each) for key, each in found.items()}


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
