"""Text and TOML values into what an annotation says. Pure: used for flags, environment, file keys and Python values.

A value given as text (a flag, the environment) is read: `"4"` is 4, `"on"` is true, `"256MiB"` is bytes, `"500ms"` is
0.5 seconds, `"a,b"` is a tuple. A value that has a type already (a TOML file, Python) must have the right one, except
that an int serves as a float and that quantities may be written as text, because TOML has no sizes and durations.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

SIZES = {
    "": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30,
}  # fmt: skip
DURATIONS = {"": 1.0, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_QUANTITY = re.compile(r"\s*([+-]?\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]*)\s*")


class Mismatch(ValueError):
    """The value does not fit; `str()` is what is allowed, such as "a whole number"."""


def coerce(value: object, annotation: Any, unit: str = "") -> object:
    """`value` as `annotation` has it.

    Args:
        annotation: int, float, bool, str, tuple[T, ...], Mapping[str, T], `T | None` or a union of those.
        unit: "bytes" and "s" let text carry a unit, such as 256MiB and 500ms.

    Raises:
        Mismatch: says what is allowed.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union(value, arguments, unit)
    if origin is tuple:
        return _tuple(value, arguments[0], unit)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(value, arguments[1])
    if annotation is bool:
        return _bool(value)
    if annotation is int:
        return _int(value, unit)
    if annotation is float:
        return _float(value, unit)
    if annotation is str:
        if isinstance(value, str):
            return value
        raise Mismatch("text")
    raise TypeError(f"options of type {annotation} are not known here")


def parameter(text: str) -> bool | int | float | str:
    """The plainest reading of a text without a declared type: true/false, a number, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):  # "nan" and "inf" are words more often than numbers
            return number
    return text


def describe(annotation: Any, unit: str = "") -> str:
    """What may be written, for people: "whole number", "size", "seconds", "list of text", …"""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return " or ".join(dict.fromkeys(describe(kind, unit) for kind in kinds))
    if origin is tuple:
        return f"list of {describe(arguments[0], unit)}"
    if origin is not None and issubclass(origin, Mapping):
        kind = arguments[1]
        return f"table of {'values' if get_origin(kind) in (Union, types.UnionType) else describe(kind, unit)}"
    if annotation is bool:
        return "true or false"
    if unit == "bytes":
        return "size"
    if unit == "s":
        return "seconds"
    return {int: "whole number", float: "number", str: "text"}[annotation]


def _union(value: object, kinds: tuple[Any, ...], unit: str) -> object:
    concrete = tuple(kind for kind in kinds if kind is not type(None))
    if value is None and len(concrete) < len(kinds):
        return None
    if len(concrete) > 1:  # a free parameter: bool | int | float | str
        if isinstance(value, concrete):
            return value
        raise Mismatch("true, false, a number or text")
    return coerce(value, concrete[0], unit)


def _tuple(value: object, kind: Any, unit: str) -> tuple[object, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise Mismatch(f"a {describe(tuple[kind, ...], unit)}")
    return tuple(coerce(item, kind, unit) for item in value)


def _mapping(value: object, kind: Any) -> dict[str, object]:
    free = get_origin(kind) in (Union, types.UnionType)
    if isinstance(value, str):
        # A comma separates entries only where a new `key=` follows: declarations hold commas, as in x=f4[n, 4].
        entries = [part for part in re.split(r",\s*(?=[\w.-]+\s*=)", value) if part.strip()]
        value = dict(_entry(entry, free) for entry in entries)
    elif isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        value = dict(_entry(item, free) for item in value)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Mismatch("name=value pairs")
    return {key: coerce(item, kind) for key, item in value.items()}


def _entry(text: str, free: bool) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Mismatch("name=value pairs")
    return key.strip(), parameter(value.strip()) if free else value.strip()


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in TRUE + FALSE:
        return value.strip().lower() in TRUE
    raise Mismatch("true or false")


def _int(value: object, unit: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    allowed = "a size such as 1048576 or 256MiB" if unit == "bytes" else "a whole number"
    if not isinstance(value, str):
        raise Mismatch(allowed)
    match = _QUANTITY.fullmatch(value)
    scale = SIZES.get(match[2].lower()) if match and unit == "bytes" else 1 if match and not match[2] else None
    if match is None or scale is None:
        raise Mismatch(allowed)
    try:
        return int(match[1]) * scale  # exact for any size
    except ValueError:
        number = float(match[1]) * scale
        if not number.is_integer():
            raise Mismatch(allowed) from None
        return int(number)


def _float(value: object, unit: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # Python's whole numbers have no end
            raise Mismatch("a finite number") from None
    else:
        allowed = "seconds such as 0.5, or 500ms" if unit == "s" else "a number"
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        scale = DURATIONS.get(match[2]) if match and unit == "s" else 1.0 if match and not match[2] else None
        if match is None or scale is None:
            raise Mismatch(allowed)
        number = float(match[1]) * scale
    if not math.isfinite(number):
        raise Mismatch("a finite number")
    return number
