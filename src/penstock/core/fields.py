"""Reads the members of a JSON object that a stranger sent: each with its type and range, and which were not asked for.

Errors name the member, and the kind of fault in the words that the OpenAI API made common (`problem`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from penstock.core.errors import InvalidInput

_SHOWN: Final = 80  # characters of a value that an error repeats

# What JSON calls its types, in the words of an error.
_WORDS: Final[dict[type, str]] = {
    bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", list: "an array", dict: "an object",
    type(None): "null",
}  # fmt: skip


class Fields:
    """One object. Null counts as absent everywhere. `where` is the path to it: "" or "messages[0]"."""

    __slots__ = ("_taken", "_values", "_where")

    def __init__(self, values: Mapping[str, object], where: str = "") -> None:
        self._values = values
        self._where = where
        self._taken: set[str] = set()

    def path(self, name: str) -> str:
        """How an error names a member."""
        return f"{self._where}.{name}" if self._where else name

    def take(self, name: str) -> object:
        """The member as it came; None when it is absent."""
        self._taken.add(name)
        return self._values.get(name)

    def everything(self) -> Mapping[str, object]:
        """All members as they came."""
        return self._values

    def rest(self) -> list[str]:
        """The members that nobody took and that are not null."""
        return [name for name, value in self._values.items() if name not in self._taken and value is not None]

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.mistyped(name, value, "a boolean")
        return value

    def integer(self, name: str, least: int, most: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.mistyped(name, value, "an integer")
        self._check_range(name, value, least, most, "integer")
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not _finite(value):
            raise self.mistyped(name, value, "a decimal")
        self._check_range(name, value, least, most, "decimal")
        return float(value)

    def text(self, name: str, most: int = 1 << 31) -> str | None:
        """`most` is in characters."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.mistyped(name, value, "a string")
        if len(value) > most:
            raise self.refused(
                name, f"a string with maximum length {most}, but got one with length {len(value)}",
                "string_above_max_length",
            )  # fmt: skip
        return value

    def one_of(self, name: str, allowed: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in allowed:
            raise self.refused(name, f"one of {', '.join(allowed)}, but got {shown(value)}", "invalid_value")
        return value

    def array(self, name: str, most: int = 1 << 31, least: int = 0) -> list[object] | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.mistyped(name, value, "an array")
        if len(value) < least:
            raise self.refused(name, f"an array with minimum length {least}, but got {len(value)}", "empty_array")
        if len(value) > most:
            raise self.refused(
                name, f"an array with maximum length {most}, but got one with length {len(value)}",
                "array_above_max_length",
            )  # fmt: skip
        return value

    def members(self, name: str) -> dict[str, object] | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.mistyped(name, value, "an object")
        return value

    def inner(self, name: str) -> Fields | None:
        """The members of a member."""
        value = self.members(name)
        return None if value is None else Fields(value, self.path(name))

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A string, or an array of at most `most`, each of at most `longest` characters; () when absent."""
        value = self.take(name)
        if value is None:
            return ()
        if isinstance(value, str):
            values: list[object] = [value]
        else:
            values = self.array(name, most) or []
        for at, one in enumerate(values):
            if not isinstance(one, str):
                raise self.mistyped(f"{name}[{at}]", one, "a string")
            if len(one) > longest:
                raise self.refused(
                    f"{name}[{at}]", f"a string with maximum length {longest}, but got {len(one)} characters",
                    "string_above_max_length",
                )  # fmt: skip
        return tuple(str(one) for one in values)

    def token_ids(self, name: str, most: int) -> tuple[int, ...]:
        """An array of whole numbers from 0; () when absent."""
        values = self.array(name, most)
        return () if values is None else token_ids(values, self.path(name))

    def missing(self, name: str) -> InvalidInput:
        path = self.path(name)
        return InvalidInput(
            f"Missing required parameter: '{path}'.", parameter=path, problem="missing_required_parameter"
        )

    def mistyped(self, name: str, value: object, expected: str) -> InvalidInput:
        got = _WORDS.get(type(value), "something else")
        path = self.path(name)
        return InvalidInput(
            f"Invalid type for '{path}': expected {expected}, but got {got} instead.",
            parameter=path, problem="invalid_type",
        )  # fmt: skip

    def refused(self, name: str, expected: str, problem: str) -> InvalidInput:
        path = self.path(name)
        return InvalidInput(f"Invalid '{path}': expected {expected}.", parameter=path, problem=problem)

    def unsupported(self, name: str, why: str, problem: str = "unsupported_parameter") -> InvalidInput:
        path = self.path(name)
        return InvalidInput(f"Unsupported parameter: '{path}': {why}", parameter=path, problem=problem)

    def _check_range(self, name: str, value: float, least: float, most: float, kind: str) -> None:
        if least <= value <= most:
            return
        below = value < least
        bound, word = (least, ">=") if below else (most, "<=")
        path = self.path(name)
        raise InvalidInput(
            f"Invalid '{path}': {kind} {'below minimum' if below else 'above maximum'} value. "
            f"Expected a value {word} {bound:g}, but got {shown(value)} instead.",
            parameter=path, problem=f"{kind}_{'below_min' if below else 'above_max'}_value",
        )  # fmt: skip


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any double
        return False


def token_ids(values: Iterable[object], path: str) -> tuple[int, ...]:
    """`values` as token ids. Raises: InvalidInput."""
    found = tuple(values)
    if not all(type(one) is int and 0 <= one < 1 << 31 for one in found):
        at, one = next((at, one) for at, one in enumerate(found) if not (type(one) is int and 0 <= one < 1 << 31))
        raise InvalidInput(
            f"Invalid '{path}[{at}]': expected a token id, but got {shown(one)}.",
            parameter=f"{path}[{at}]", problem="invalid_type",
        )  # fmt: skip
    return found  # type: ignore[return-value]  # each was looked at


def shown(value: object) -> str:
    """A value as an error may repeat it."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a number beyond any limit"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
