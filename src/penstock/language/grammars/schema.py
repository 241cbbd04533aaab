"""JSON Schema (2020-12, and draft-7's forms) as rules of compact JSON: no white space, properties in their order.

The grammar never allows what the schema forbids, except for what `validated` names, which the finished text is checked
for. It may allow less than the schema: an object with `properties` and no `additionalProperties` gets no others, a
schema without `type` but with keywords of one type is of that type, texts of a `pattern` have no needless escapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.core.errors import InvalidInput
from penstock.language.grammars import arrays, keywords, merging, numbers, objects, scalars, strings
from penstock.language.grammars.keywords import Schema
from penstock.language.grammars.nodes import (
    NOTHING,
    Literal,
    Node,
    Reference,
    Rules,
    choice,
    optional,
    repeat,
    sequence,
)

if TYPE_CHECKING:
    from penstock.language.grammars.validation import Validator

COMMA, COLON = Literal(","), Literal(":")
_MERGE = 60  # a merge of two schemas takes as long as so many nodes: it counts against the same limit


def constant(value: object) -> Node:
    """The compact JSON of a value, token by token."""
    import json

    if isinstance(value, Mapping):
        pairs = [sequence(constant(str(key)), COLON, constant(item)) for key, item in value.items()]
        return sequence(Literal("{"), *_with_commas(pairs), Literal("}"))
    if isinstance(value, list | tuple):
        return sequence(Literal("["), *_with_commas([constant(item) for item in value]), Literal("]"))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return Literal(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _with_commas(items: list[Node]) -> list[Node]:
    return [part for at, item in enumerate(items) for part in ((COMMA, item) if at else (item,))]


class SchemaCompiler:
    """Compiles one schema. `validated` collects what only the finished text can be checked for."""

    def __init__(self, root: Schema | bool, rules: Rules, validator: Validator) -> None:
        self.root, self.rules, self.validator = root, rules, validator
        self.validated: set[str] = set()
        self._references: dict[str, Reference] = {}
        self._flat: dict[str, Schema | bool] = {}  # what a `$ref` comes to, once it has been merged with others
        self._any: Reference | None = None
        self._depth = 0

    # --- what a schema allows ---

    def compile(self, schema: Schema | bool, where: str) -> Node:
        """What the schema allows, as compact JSON. Raises InvalidInput that names the keyword's path."""
        if isinstance(schema, bool):
            return self.any_value() if schema else NOTHING
        self._depth += 1
        if self._depth > self.rules.limits.depth:
            raise InvalidInput(f"{where}: schemas are more than {self.rules.limits.depth} deep inside each other")
        try:
            self.rules.count(1)
            return self._compile(schema, where)
        finally:
            self._depth -= 1

    def _compile(self, schema: Schema, where: str) -> Node:
        keywords.check_names(schema, where)
        assertions = {
            key for key in schema if (key not in keywords.ANNOTATIONS and key in keywords.KNOWN) or key == merging.EVERY
        }
        if assertions == {"$ref"}:
            return self.referenced(keywords.text(schema, "$ref", where), where)
        self.validated.update(
            key for key in schema if key in keywords.VALIDATED and not self._says_nothing(schema, key)
        )
        if "enum" in schema or "const" in schema:
            return self._values(schema, where)
        if assertions & {"$ref", "allOf"}:
            flat = self.flat(schema, where)
            return self.compile(flat, where)
        if assertions & {"anyOf", "oneOf", merging.EVERY}:
            return self._alternatives(schema, where)
        named = keywords.types(schema, where)
        if named is None:
            named = self._implied_types(schema)
        if named is None:
            return self.any_value()
        if "number" in named:
            named = tuple(name for name in named if name != "integer")
        return choice(*(self._of_type(name, schema, where) for name in named))

    @staticmethod
    def _says_nothing(schema: Schema, key: str) -> bool:
        return schema[key] in (False, {}) and key in (
            "uniqueItems",
            "dependentRequired",
            "dependentSchemas",
            "dependencies",
        )

    @staticmethod
    def _implied_types(schema: Schema) -> tuple[str, ...] | None:
        """The types whose keywords are there. Others would be valid too; a model is kept to what was meant."""
        found = [
            name
            for name, belonging in (
                ("number", keywords.NUMBERS), ("string", keywords.STRINGS), ("array", keywords.ARRAYS),
                ("object", keywords.OBJECTS),
            )
            if any(key in belonging for key in schema)
        ]  # fmt: skip
        if found and schema.get("nullable") is True:
            found.append("null")
        return tuple(found) or None

    def _of_type(self, name: str, schema: Schema, where: str) -> Node:
        if name == "null":
            return Literal("null")
        if name == "boolean":
            return choice(Literal("true"), Literal("false"))
        if name == "integer":
            return scalars.integer(self, schema, where)
        if name == "number":
            return scalars.number(self, schema, where)
        if name == "string":
            return scalars.string(self, schema, where)
        if name == "array":
            return arrays.array(self, schema, where)
        return objects.compile_object(self, schema, where)

    def any_value(self) -> Node:
        """Any JSON."""
        if self._any is None:
            self._any = self.rules.reserve("value")
            string = strings.free(self.rules)
            number = self.rules.add("number", numbers.any_number(self.rules.limits.integer_digits), lexical=True)
            pair = sequence(string, COLON, self._any)
            pairs = optional(sequence(pair, repeat(sequence(COMMA, pair), 0, None)))
            items = optional(sequence(self._any, repeat(sequence(COMMA, self._any), 0, None)))
            words = (Literal("true"), Literal("false"), Literal("null"))
            whole_object = sequence(Literal("{"), pairs, Literal("}"))
            whole_array = sequence(Literal("["), items, Literal("]"))
            self.rules.define(self._any, choice(whole_object, whole_array, string, number, *words))
        return self._any

    # --- references and combinations ---

    def referenced(self, pointer: str, where: str) -> Node:
        """The rule of what a `$ref` points at: one rule per target, so that schemas may contain themselves."""
        if pointer not in self._references:
            target, place = self.resolve(pointer, where)
            name = "".join(c if c.isascii() and c.isalnum() else "-" for c in pointer.rpartition("/")[2])[:32].strip(
                "-"
            )
            reference = self._references[pointer] = self.rules.reserve(f"ref-{name}" if name else "ref")
            self.rules.define(reference, self.compile(target, place))
        return self._references[pointer]

    def resolve(self, pointer: str, where: str) -> tuple[Schema | bool, str]:
        """What a `$ref` points at within this schema, and its path. Nothing is ever fetched."""
        root: object = self.root
        if not pointer.startswith("#"):
            raise InvalidInput(f"{where}.$ref: {pointer[:120]!r} is outside of this schema; only `#/…` is followed")
        if not pointer.startswith("#/") and pointer != "#":
            found = self._anchored(pointer[1:])
            if found is None:
                raise InvalidInput(f"{where}.$ref: there is no $anchor {pointer[1:121]!r}")
            return found, f"{where}.$ref({pointer[:120]})"
        for part in pointer.split("/")[1:]:
            key = _unquoted(part).replace("~1", "/").replace("~0", "~")
            if isinstance(root, Mapping) and key in root:
                root = root[key]
            elif isinstance(root, list | tuple) and key.isascii() and key.isdigit() and int(key[:6]) < len(root):
                root = root[int(key[:6])]
            else:
                raise InvalidInput(f"{where}.$ref: {pointer[:120]!r} points at nothing")
        return keywords.subschema(root, f"{where}.$ref"), f"{where}.$ref({pointer[:120]})"

    def _anchored(self, name: str) -> Schema | None:
        waiting: list[object] = [self.root]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Mapping):
                if value.get("$anchor") == name or value.get("$id") == f"#{name}":
                    return value
                waiting.extend(value.values())
            elif isinstance(value, list | tuple):
                waiting.extend(value)
        return None

    def flat(self, schema: Schema | bool, where: str, depth: int = 0) -> Schema | bool:
        """The schema without `$ref` and `allOf` at its top; `anyOf` and `oneOf` become one list of conditions."""
        if isinstance(schema, bool):
            return schema
        keywords.check_names(schema, where)
        if depth > self.rules.limits.depth:
            raise InvalidInput(f"{where}: `$ref` and `allOf` go around in a circle, or are too deep")
        self.rules.count(1)
        self.validated.update(
            key for key in schema if key in keywords.VALIDATED and not self._says_nothing(schema, key)
        )
        found: Schema | bool = {
            k: v for k, v in schema.items() if k not in ("$ref", "allOf", "anyOf", "oneOf", "const")
        }
        assert isinstance(found, dict)
        if "const" in schema:
            found = merging.merged(found, {"enum": [schema["const"]]}, where)
        conditions = [(key, keywords.listed(schema, key, where)) for key in ("anyOf", "oneOf") if key in schema]
        if conditions:
            found = merging.merged(found, {merging.EVERY: conditions}, where)
        if "$ref" in schema:
            pointer = keywords.text(schema, "$ref", where)
            if pointer not in self._flat:
                target, place = self.resolve(pointer, where)
                self._flat[pointer] = self.flat(target, place, depth + 1)
            found = merging.merged(found, self._flat[pointer], where)
        if "allOf" in schema:
            for at, item in enumerate(keywords.listed(schema, "allOf", where)):
                found = merging.merged(found, self.flat(item, f"{where}.allOf[{at}]", depth + 1), where)
        return found

    def _alternatives(self, schema: Schema, where: str) -> Node:
        """`anyOf` and `oneOf`, each alternative with what stands beside them."""
        rest: dict[str, object] = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf", merging.EVERY)}
        nullable = rest.pop("nullable", None)
        conditions: list[tuple[str, list[Schema | bool]]] = list(schema.get(merging.EVERY, ()))  # type: ignore[call-overload]  # ours
        conditions += [(key, keywords.listed(schema, key, where)) for key in ("anyOf", "oneOf") if key in schema]
        (key, alternatives), others = conditions[0], conditions[1:]
        if others:
            rest[merging.EVERY] = others
        alone = not any(k in keywords.KNOWN and k not in keywords.ANNOTATIONS for k in rest) and not others
        ways = []
        for at, alternative in enumerate(alternatives):
            place = f"{where}.{key}[{at}]"
            self.rules.count(1 if alone else _MERGE)
            whole = alternative if alone else merging.merged(rest, self.flat(alternative, place), place)
            ways.append(self.compile(whole, place))
        if key == "oneOf" and not self._apart([self.flat(item, where) for item in alternatives]):
            self.validated.add("oneOf")
        if nullable is True:
            ways.append(Literal("null"))
        return choice(*ways)

    def _apart(self, alternatives: list[Schema | bool]) -> bool:
        """Whether no value can match two of the alternatives, as far as types and constant properties tell."""
        return all(_disjoint(one, other) for at, one in enumerate(alternatives) for other in alternatives[at + 1 :])

    def _values(self, schema: Schema, where: str) -> Node:
        """`enum` and `const`: those values that the schema's other keywords allow too."""
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list | tuple) or not values:
            raise InvalidInput(f"{where}.enum: must be a list with at least one value")
        self._check_references(schema, where)
        alone = {key for key in schema if key in keywords.KNOWN and key not in keywords.ANNOTATIONS} in (
            {"enum"},
            {"const"},
        )
        every = merging.EVERY in schema
        if every:
            schema = {k: v for k, v in schema.items() if k != merging.EVERY} | {
                "allOf": [{key: items} for key, items in schema[merging.EVERY]]  # type: ignore[attr-defined]  # ours
            }
        for key in ("pattern", "format"):
            if isinstance(lists := schema.get(key), list):
                whole = [*keywords.as_list(schema.get("allOf")), *({key: item} for item in lists)]
                schema = {k: v for k, v in schema.items() if k != key} | {"allOf": whole}
        allowed = values if alone else [value for value in values if self.validator.allows(schema, value, where)]
        return self.rules.add("enum", choice(*(constant(value) for value in allowed)))

    def _check_references(self, schema: object, where: str) -> None:
        """Every `$ref` inside is one that is followed: validation must not meet another."""
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            self.resolve(schema["$ref"], where)


def _unquoted(text: str) -> str:
    from urllib.parse import unquote

    return unquote(text)


def _disjoint(one: Schema | bool, other: Schema | bool) -> bool:
    if one is False or other is False:
        return True
    if isinstance(one, bool) or isinstance(other, bool):
        return False
    mine, its = _constants(one), _constants(other)
    if mine is not None and its is not None:
        return not any(a == b for a in mine for b in its)
    first, second = _kinds(one), _kinds(other)
    if first and second and not first & second:
        return True
    if first != {"object"} or second != {"object"}:
        return False
    left, right = one.get("properties", {}), other.get("properties", {})
    required = set(keywords.as_list(one.get("required"))) & set(keywords.as_list(other.get("required")))
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return False
    return any(name in required and name in right and _disjoint(left[name], right[name]) for name in left)


def _constants(schema: Schema) -> list[object] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return list(values) if isinstance(values, list | tuple) else None


def _kinds(schema: Schema) -> set[str]:
    found = set(keywords.types(schema, "") or ())
    if "integer" in found or "number" in found:
        found |= {"integer", "number"}
    return found
