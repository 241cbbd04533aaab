"""The last word on a finished text: is it what the schema, pattern or list of choices allows?

jsonschema does the work, with three things changed: nothing is ever fetched, patterns run with a time limit, and
`multipleOf` is decimal arithmetic (0.07 is a multiple of 0.01, which in binary fractions it is not).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from threading import Lock
from typing import TYPE_CHECKING, Any

from penstock.core.errors import InvalidInput, ServableError
from penstock.language.grammars import keywords
from penstock.language.grammars.keywords import Schema
from penstock.language.grammars.nodes import Limits

if TYPE_CHECKING:
    from jsonschema.protocols import Validator as JsonSchemaValidator

_MOST_STEPS = 200_000  # keywords looked at for one value: about a second. Schemas can double the work at every level
_PATTERN_S = 0.25  # for one pattern on one text; a pattern that needs longer is one that runs away


class Validator:
    """Checks values against one schema. Made cheaply: the work begins with the first value."""

    def __init__(self, schema: Schema | bool, where: str, limits: Limits) -> None:
        self.schema, self.where, self.limits = schema, where, limits
        self._made: JsonSchemaValidator | None = None
        self._steps = _Steps()
        self._lock = Lock()  # one value at a time, since steps are counted

    def _validator(self) -> JsonSchemaValidator:
        if self._made is None:
            self._made = _make(self.schema, self._steps)
        return self._made

    def allows(self, part: Schema, value: object, where: str) -> bool:
        """Whether a part of the schema allows the value."""
        made = self._validator().evolve(schema=_plain(part, "items" in part and _old(self.schema)))
        try:
            with self._lock:
                self._steps.left = _MOST_STEPS
                return bool(made.is_valid(value))
        except Exception as error:
            raise InvalidInput(f"{where}: {error}") from error

    def check(self, value: object) -> None:
        """Raises ServableError that says what is wrong, and where in the output."""
        try:
            with self._lock:
                made = self._validator()
                self._steps.left = _MOST_STEPS
                found = next(iter(made.iter_errors(value)), None)
        except RecursionError:
            raise ServableError(f"the output cannot be checked against {self.where}: it is too deep") from None
        if found is not None:
            place = found.json_path
            raise ServableError(f"the output does not match {self.where}: {place}: {str(found.message)[:300]}")


def read_json(text: str, what: str = "the output") -> object:
    """The value of a finished text. Raises ServableError: a model's output that is no JSON is the model's fault."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ServableError(f"{what} is not JSON: {error}") from error


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _old(schema: object) -> bool:
    """Whether the schema is in draft-7's forms: by its `$schema`, or by a list in `items`."""
    if isinstance(schema, Mapping):
        named = str(schema.get("$schema", ""))
        if named:
            return any(draft in named for draft in ("draft-04", "draft-06", "draft-07"))
    waiting: list[object] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if isinstance(value.get("items"), list | tuple):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
    return False


def _plain(schema: object, _old_items: bool = False) -> Any:
    """The schema as jsonschema takes it: plain dicts and lists, `nullable` (OpenAPI 3.0) as a type, no remote `$id`."""
    if isinstance(schema, Mapping):
        found = {key: _plain(value) for key, value in schema.items()}
        if found.get("nullable") is True:
            nullable = {key: value for key, value in found.items() if key != "nullable"}
            return {"anyOf": [{"type": "null"}, nullable]} if any(k in keywords.KNOWN for k in nullable) else nullable
        return found
    return [_plain(item) for item in schema] if isinstance(schema, list | tuple) else schema


class _Steps:
    """How many keywords may still be looked at."""

    left = 0

    def counted(self, keyword: Any) -> Any:
        def count(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise ServableError(f"checking the output takes more than {_MOST_STEPS} steps; make the schema simpler")
            return keyword(validator, value, instance, schema)

        return count


def _make(schema: Schema | bool, steps: _Steps) -> JsonSchemaValidator:
    import jsonschema
    from jsonschema.validators import extend
    from referencing import Registry

    base = jsonschema.Draft7Validator if _old(schema) else jsonschema.Draft202012Validator
    ours = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "multipleOf": _multiple_of,
        "format": _format,
    }
    kind = extend(base, {name: steps.counted(keyword) for name, keyword in (dict(base.VALIDATORS) | ours).items()})
    plain = _plain(schema)
    if isinstance(plain, dict):
        plain.pop("$id", None)
    registry: Registry[Any] = Registry()
    made: JsonSchemaValidator = kind(plain, registry=registry)
    return made


def found_in(pattern: str, text: str) -> bool:
    """Whether the pattern is found in the text. Raises ServableError when that takes too long."""
    import regex

    try:
        return regex.search(_ascii_classes(pattern), text, flags=regex.ASCII, timeout=_PATTERN_S) is not None
    except TimeoutError:
        raise ServableError(f"the pattern {pattern[:80]!r} takes too long on the output") from None


def _ascii_classes(pattern: str) -> str:
    """`$` as in ECMA 262: the very end, not before a last line feed as well."""
    out, escaped, in_class = [], False, False
    for c in pattern:
        if not escaped and not in_class and c == "$":
            out.append("\\Z")
        else:
            out.append(c)
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif c == "[":
            in_class = True
        elif c == "]":
            in_class = False
    return "".join(out)


def _pattern(validator: Any, wanted: str, value: object, schema: Any) -> Iterator[Exception]:
    from jsonschema import ValidationError

    if isinstance(value, str) and not found_in(wanted, value):
        yield ValidationError(f"{value[:80]!r} does not match {wanted[:80]!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: object, schema: Any) -> Iterator[Exception]:
    if not isinstance(value, dict):
        return
    for wanted, part in patterns.items():
        for key, item in value.items():
            if found_in(wanted, key):
                yield from validator.descend(item, part, path=key, schema_path=wanted)


def _multiple_of(validator: Any, of: object, value: object, schema: Any) -> Iterator[Exception]:
    from jsonschema import ValidationError

    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    try:
        if Decimal(str(value)) % Decimal(str(of)):
            yield ValidationError(f"{value} is not a multiple of {of}")
    except InvalidOperation:  # the quotient has more digits than decimals keep
        yield ValidationError(f"{value} cannot be told to be a multiple of {of}")


def _format(validator: Any, name: object, value: object, schema: Any) -> Iterator[Exception]:
    from jsonschema import ValidationError

    from penstock.language.grammars.strings import FORMATS

    if isinstance(value, str) and str(name) in FORMATS and not found_in(f"^(?:{FORMATS[str(name)]})$", value):
        yield ValidationError(f"{value[:80]!r} is not a {name}")
