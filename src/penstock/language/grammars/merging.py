"""Two schemas as one that allows what both allow: what `allOf`, and keywords beside `$ref` or `anyOf`, come to.

Only assertions are merged; the result may hold lists under our own keys (`pattern` as a list, `anyOf` as a list of
lists under `@all`), which `schema.py` reads. Nothing is widened: what cannot be merged is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from math import lcm

from penstock.core.errors import InvalidInput
from penstock.language.grammars import keywords
from penstock.language.grammars.keywords import Schema

_LARGER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum", "minContains")
_SMALLER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum", "maxContains")
EVERY = "@every"  # our own: alternatives that all have to hold, [("anyOf" | "oneOf", [schemas]), …]


def merged(one: Schema | bool, other: Schema | bool, where: str) -> Schema | bool:
    """What both allow. `allOf` and `$ref` must have been resolved at the top of both."""
    if one is False or other is False:
        return False
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    assert isinstance(one, Mapping) and isinstance(other, Mapping)
    found: dict[str, object] = {k: v for k, v in one.items() if k not in keywords.ANNOTATIONS}
    _merge_properties(found, one, other, where)
    _merge_items(found, one, other, where)
    for key, value in other.items():
        if key in keywords.ANNOTATIONS or key in _STRUCTURES:
            continue
        if key not in found:
            found[key] = value
            continue
        joined = _joined(key, found[key], value, where)
        if joined is None:
            return False
        found[key] = joined
    if "enum" in found and found["enum"] == []:
        return False
    return found


_STRUCTURES = frozenset({"properties", "patternProperties", "additionalProperties", "items", "prefixItems"})


def _joined(key: str, mine: object, its: object, where: str) -> object | None:
    """One keyword's value that says what both say; None when they contradict each other."""
    if mine == its:
        return mine
    if key == "type":
        return [name for name in keywords.TYPES if _allows(mine, name) and _allows(its, name)] or None
    if key == "required":
        return list(dict.fromkeys([*_sequence(mine), *_sequence(its)]))
    if key == "enum":
        kept = [value for value in _sequence(mine) if any(_same(value, other) for other in _sequence(its))]
        return kept or None
    if key in _LARGER or key in _SMALLER:
        if not isinstance(mine, int | float) or not isinstance(its, int | float):
            raise InvalidInput(f"{where}.{key}: must be a number")
        return max(mine, its) if key in _LARGER else min(mine, its)
    if key == "multipleOf":
        first, second = Decimal(str(mine)), Decimal(str(its))
        if first % 1 or second % 1:
            raise InvalidInput(f"{where}.multipleOf: two of them that are not whole numbers are not supported together")
        return lcm(int(first), int(second))
    if key in ("pattern", "format"):
        return list(dict.fromkeys([*_sequence(mine), *_sequence(its)]))
    if key == EVERY:
        return [*_sequence(mine), *_sequence(its)]
    if key in ("uniqueItems", "nullable"):
        return mine and its if key == "nullable" else True
    if key in keywords.VALIDATED:
        return mine  # validated in the schema as it was sent, so that neither is lost
    if key == "const":
        return None
    raise InvalidInput(f"{where}.{key}: two different values of {key!r} cannot be merged")


def _names(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _allows(value: object, name: str) -> bool:
    return name in _names(value) or (name == "integer" and "number" in _names(value))


def _sequence(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _same(one: object, other: object) -> bool:
    """Equal as JSON: 1 and 1.0 are, true and 1 are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def every_of(one: Schema | bool, other: Schema | bool) -> Schema | bool:
    """Both, left as `allOf` for the moment at which they are read."""
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    if one is False or other is False:
        return False
    return one if one == other else {"allOf": [one, other]}


def _merge_properties(found: dict[str, object], one: Schema, other: Schema, where: str) -> None:
    if not (_STRUCTURES & set(other)) and "properties" not in one:
        return
    mine, its = keywords.schemas(one, "properties", where), keywords.schemas(other, "properties", where)
    properties: dict[str, Schema | bool] = {}
    for name in [*mine, *(name for name in its if name not in mine)]:
        properties[name] = every_of(_property(one, mine, name, where), _property(other, its, name, where))
    if properties:
        found["properties"] = properties
    if "patternProperties" in one or "patternProperties" in other:
        first, second = (
            keywords.schemas(one, "patternProperties", where),
            keywords.schemas(other, "patternProperties", where),
        )
        if first and second and first != second:
            raise InvalidInput(f"{where}.patternProperties: two different ones cannot be merged")
        if (first and not second and other.get("additionalProperties", True) not in (True, {})) or (
            second and not first and one.get("additionalProperties", True) not in (True, {})
        ):
            raise InvalidInput(f"{where}.patternProperties: cannot be merged with additionalProperties beside it")
        found["patternProperties"] = first or second
    if "additionalProperties" in one or "additionalProperties" in other:
        found["additionalProperties"] = every_of(_additional(one, where), _additional(other, where))


def _additional(schema: Schema, where: str) -> Schema | bool:
    return keywords.subschema(schema.get("additionalProperties", True), f"{where}.additionalProperties")


def _property(schema: Schema, properties: Mapping[str, Schema | bool], name: str, where: str) -> Schema | bool:
    if name in properties:
        return properties[name]
    # A key that patterns take is theirs; `objects.py` merges those in.
    return True if "patternProperties" in schema else _additional(schema, where)


def _merge_items(found: dict[str, object], one: Schema, other: Schema, where: str) -> None:
    if not ({"items", "prefixItems"} & set(one) and {"items", "prefixItems"} & set(other)):
        for key in ("items", "prefixItems"):
            if key in other:
                found[key] = other[key]
        return
    mine, my_rest = places(one, where)
    its, its_rest = places(other, where)
    first = [
        every_of(mine[at] if at < len(mine) else my_rest, its[at] if at < len(its) else its_rest)
        for at in range(max(len(mine), len(its)))
    ]
    found.pop("additionalItems", None)
    found["prefixItems"], found["items"] = first, every_of(my_rest, its_rest)


def places(schema: Schema, where: str) -> tuple[list[Schema | bool], Schema | bool]:
    """The schemas of the first items, and of all after them: 2020-12's `prefixItems` or draft-7's list in `items`."""
    if isinstance(schema.get("items"), list | tuple):
        first = keywords.listed({"prefixItems": schema["items"]}, "prefixItems", where)
        rest = schema.get("additionalItems", True)
    else:
        first = keywords.listed(schema, "prefixItems", where) if "prefixItems" in schema else []
        rest = schema.get("items", True)
    return first, keywords.subschema(rest, f"{where}.items")
