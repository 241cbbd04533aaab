"""Options of policies: a frozen dataclass whose fields are made by `option`, read from what users wrote.

As `penstock.config` does for the server's options, but pure: policies may not even import what reads the environment.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from penstock.core.coercion import Mismatch, coerce, describe
from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest

T = TypeVar("T")


def option(default: T, doc: str, *, unit: str = "", minimum: float | None = None, maximum: float | None = None) -> T:
    """A dataclass field that is an option; both ends of the range are allowed. Unit "s" lets text carry one (500ms)."""
    metadata = {"doc": doc, "unit": unit, "minimum": minimum, "maximum": maximum}
    made: Any = dataclasses.field(default=default, metadata=metadata)
    return made  # type: ignore[no-any-return]  # a field stands in for its value, as dataclasses.field does


def read(kind: type[T], given: Mapping[str, object], where: str) -> T:
    """A `kind` with what was given, and defaults for the rest.

    Raises:
        InvalidInput: an unknown key (naming the nearest), a wrong type, or a number outside its range.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # classes can be hashed
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # dataclasses only
    values: dict[str, object] = {}
    for key, value in given.items():
        field = fields.get(str(key))
        if field is None:
            raise InvalidInput(
                f"{where}: there is no option {str(key)!r}{nearest(str(key), fields)}; there are {', '.join(fields)}"
            )
        values[field.name] = _value(value, hints[field.name], field, where)
    return kind(**values)


@functools.cache  # there are as many as policies, and each is asked for every second
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def table(kind: type[Any]) -> str:
    """The options as a table in Markdown: name, what may be written, default, what it does."""
    hints = _hints(kind)  # type: ignore[arg-type]  # classes can be hashed
    lines = ["| Option | Allowed | Default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        default = field.default
        shown = "" if default is None or default == () else f"{default:g}" if isinstance(default, float) else default
        lines.append(f"| `{field.name}` | {_allowed(hints[field.name], field)} | {shown} | {field.metadata['doc']} |")
    return "\n".join(lines)


def _value(value: object, annotation: Any, field: dataclasses.Field[Any], where: str) -> object:
    if "allowed" in field.metadata:  # a form of its own, which the policy reads itself
        return value
    try:
        result = coerce(value, annotation, field.metadata["unit"])
    except Mismatch as mismatch:
        raise InvalidInput(f"{where}: {field.name} is {value!r}; write {mismatch}") from None
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    number = isinstance(result, (int, float)) and not isinstance(result, bool)
    if number and ((low is not None and result < low) or (high is not None and result > high)):
        raise InvalidInput(f"{where}: {field.name} is {value!r}; allowed is {_allowed(annotation, field)}")
    return result


def _allowed(annotation: Any, field: dataclasses.Field[Any]) -> str:
    if "allowed" in field.metadata:
        return str(field.metadata["allowed"])
    text = describe(annotation, field.metadata["unit"])
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if low is not None and high is not None:
        return f"{text}, {low:g} to {high:g}"
    return f"{text}, at least {low:g}" if low is not None else text
