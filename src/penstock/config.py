"""Options, written once: name, type, default, unit and doc; flags, environment, file keys and docs derive from them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def option(default: T, doc: str, *, unit: str = "", choices: tuple[str, ...] = (), secret: bool = False) -> T:
    """A dataclass field that is an option. `secret` values are never printed; `None` as default means unset."""
    metadata = {"doc": doc, "unit": unit, "choices": choices, "secret": secret}
    if isinstance(default, (list, dict)):
        kind = type(default)
        field: Any = dataclasses.field(default_factory=lambda: kind(default), metadata=metadata)
    else:
        field = dataclasses.field(default=default, metadata=metadata)
    return field  # type: ignore[no-any-return]  # a field stands in for its value, as dataclasses.field does
