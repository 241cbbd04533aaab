"""Which keywords of JSON Schema there are, and how their values are read: with a path in every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest

Schema = Mapping[str, object]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Say nothing about what is valid.
ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "$anchor", "$comment", "$defs", "$vocabulary", "definitions", "title", "description",
        "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
        "contentSchema", "discriminator", "xml", "externalDocs", "id", "strict", "name",
    }
)  # fmt: skip
STRINGS = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
ARRAYS = frozenset(
    {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains",
     "maxContains", "unevaluatedItems"}
)  # fmt: skip
OBJECTS = frozenset(
    {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
     "propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"}
)  # fmt: skip
COMBINING = frozenset({"type", "enum", "const", "nullable", "anyOf", "oneOf", "allOf", "not", "$ref"})
# The grammar lets more through than these allow; the finished text is validated.
VALIDATED = frozenset(
    {"uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems", "dependentRequired",
     "dependentSchemas", "dependencies", "unevaluatedProperties", "not", "propertyNames"}
)  # fmt: skip
REFUSED = frozenset({"if", "then", "else", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"})
KNOWN = ANNOTATIONS | STRINGS | NUMBERS | ARRAYS | OBJECTS | COMBINING | REFUSED


def check_names(schema: Schema, where: str) -> None:
    """Raises InvalidInput for a keyword that cannot be kept, and for one that looks like a slip of the pen.

    Other unknown keywords are annotations (JSON Schema 2020-12, section 4.3.1).
    """
    for key in schema:
        if key in REFUSED:
            raise InvalidInput(f"{where}.{key}: the keyword {key!r} is not supported in structured output")
        if key not in KNOWN and (hint := nearest(key, KNOWN - ANNOTATIONS)):
            raise InvalidInput(f"{where}.{key}: {key!r} is not a keyword of JSON Schema{hint}")


def _wrong(where: str, key: str, wanted: str, got: object) -> InvalidInput:
    return InvalidInput(f"{where}.{key}: must be {wanted}, not {str(got)[:80]!r}")


def count(schema: Schema, key: str, where: str) -> int | None:
    value = schema.get(key)
    if value is None and key not in schema:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(where, key, "a whole number, 0 or more", value)
    return value


def number(schema: Schema, key: str, where: str) -> Decimal | None:
    if key not in schema:
        return None
    value = schema[key]
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _wrong(where, key, "a number", value)
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        raise _wrong(where, key, "a number", value) from None
    if not found.is_finite() or abs(found.adjusted()) > 300:
        raise _wrong(where, key, "a number of less than 300 digits", value)
    return found


def texts(schema: Schema, key: str, where: str) -> tuple[str, ...]:
    value = schema.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise _wrong(where, key, "a list of texts", value)
    return tuple(value)


def text(schema: Schema, key: str, where: str) -> str:
    value = schema[key]
    if not isinstance(value, str):
        raise _wrong(where, key, "a text", value)
    return value


def schemas(schema: Schema, key: str, where: str) -> Mapping[str, Schema | bool]:
    value = schema.get(key, {})
    if not isinstance(value, Mapping):
        raise _wrong(where, key, "an object of schemas", value)
    for name, item in value.items():
        subschema(item, f"{where}.{key}.{name}")
    return value


def listed(schema: Schema, key: str, where: str) -> list[Schema | bool]:
    value = schema[key]
    if not isinstance(value, list | tuple) or (not value and key != "prefixItems"):
        raise _wrong(where, key, "a list of schemas", value)
    return [subschema(item, f"{where}.{key}[{at}]") for at, item in enumerate(value)]


def subschema(value: object, where: str) -> Schema | bool:
    if not isinstance(value, Mapping | bool):
        raise InvalidInput(f"{where}: a schema must be an object or true or false, not {str(value)[:80]!r}")
    return value


def types(schema: Schema, where: str) -> tuple[str, ...] | None:
    """The types that `type` and `nullable` allow; None when they say nothing."""
    if "type" not in schema:
        return None
    value = schema["type"]
    named = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not named or any(name not in TYPES for name in named):
        raise _wrong(where, "type", f"one of {', '.join(TYPES)}, or a list of them", value)
    if schema.get("nullable") is True:
        named = (*named, "null")
    return tuple(name for name in TYPES if name in named)


def as_list(value: object) -> list[object]:
    """The value as a list: none is empty, one is itself."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
