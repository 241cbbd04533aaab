"""JSON objects of a schema: properties in the schema's order, the optional ones left out or not, then other keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.core.errors import InvalidInput
from penstock.language.grammars import automaton, keywords, merging, pattern, strings
from penstock.language.grammars.nodes import (
    EMPTY,
    NOTHING,
    Literal,
    Node,
    choice,
    optional,
    repeat,
    sequence,
)

if TYPE_CHECKING:
    from penstock.language.grammars.keywords import Schema
    from penstock.language.grammars.schema import SchemaCompiler

_COMMA, _COLON = Literal(","), Literal(":")
_MOST_COUNTED = 24  # properties of which every count is followed exactly; beyond, counts are validated


def compile_object(compiler: SchemaCompiler, schema: Schema, where: str) -> Node:
    """The objects that the schema allows. Raises InvalidInput that names the keyword's path."""
    rules = compiler.rules
    properties = dict(keywords.schemas(schema, "properties", where))
    patterns = keywords.schemas(schema, "patternProperties", where)
    required = keywords.texts(schema, "required", where)
    closed = "additionalProperties" not in schema and bool(properties or patterns)
    additional = (
        False
        if closed
        else keywords.subschema(schema.get("additionalProperties", True), f"{where}.additionalProperties")
    )
    keys = {text: pattern.read(text, rules, f"{where}.patternProperties", search=True) for text in patterns}
    machines = {text: automaton.build(node, rules) for text, node in keys.items()}
    for name in required:
        if name not in properties:
            taken = any(machine.matches(name) for machine in machines.values())
            properties[name] = True if taken or closed else additional
    pairs: list[tuple[Node, bool]] = []
    for name, value in properties.items():
        for text, machine in machines.items():
            if machine.matches(name):
                value = merging.every_of(value, patterns[text])
        node = compiler.compile(value, f"{where}.properties.{name}")
        if node == NOTHING and name in required:
            raise InvalidInput(f"{where}.properties.{name}: required, and nothing can match it")
        if node != NOTHING:
            key = Literal(_quoted(name))
            pairs.append((sequence(key, _COLON, node), name in required))
    others = _others(compiler, additional, keys, patterns, set(properties), where)
    least, most = keywords.count(schema, "minProperties", where) or 0, keywords.count(schema, "maxProperties", where)
    if (least and others != NOTHING) or (most is not None and len(pairs) + (others != NOTHING) > _MOST_COUNTED):
        compiler.validated.add("minProperties" if least else "maxProperties")  # a key written twice counts once
    if least <= sum(needed for _, needed in pairs):
        least = 0
    if most is not None and others == NOTHING and most >= len(pairs):
        most = None
    if (least == 0 and most is None) or len(pairs) > _MOST_COUNTED:
        return _uncounted(compiler, pairs, others)
    if len(pairs) and max(least, most or 0) > 2 * _MOST_COUNTED:
        compiler.validated.add("minProperties" if least else "maxProperties")
        return _uncounted(compiler, pairs, others)
    return _counted(compiler, pairs, others, least, most)


def _quoted(name: str) -> str:
    import json

    return json.dumps(name, ensure_ascii=False)


def _others(
    compiler: SchemaCompiler, additional: Schema | bool, keys: dict[str, Node],
    patterns: Mapping[str, Schema | bool], names: set[str], where: str,
) -> Node:  # fmt: skip
    """One pair whose key is none of the properties': of one pattern only, or of none."""
    rules = compiler.rules
    ways = []
    for text, node in keys.items():
        value = compiler.compile(patterns[text], f"{where}.patternProperties.{text}")
        if value == NOTHING:
            continue
        refused = [
            *(Literal(name) for name in sorted(names) if name),
            *(other for key, other in keys.items() if key != text),
        ]
        found = automaton.build(node, rules)
        if "" in names:
            refused.append(EMPTY)
        if refused:
            found = automaton.without(found, automaton.build(choice(*refused), rules), rules)
        ways.append(sequence(strings.of_automaton(found, rules, "key"), _COLON, value))
    if additional is not False:
        value = compiler.compile(additional, f"{where}.additionalProperties")
        if value != NOTHING:
            key = rules.add("key", strings.keys_except(names, keys.values(), rules))
            ways.append(sequence(key, _COLON, value))
    return rules.add("pair", choice(*ways)) if ways else NOTHING


def _uncounted(compiler: SchemaCompiler, pairs: list[tuple[Node, bool]], others: Node) -> Node:
    """Any of the optional properties and as many others as one likes.

    `after` is what may follow a property, `first` what may follow the opening bracket, both from one place onwards.
    """
    rules = compiler.rules
    after = rules.add("more", repeat(sequence(_COMMA, others), 0, None)) if others != NOTHING else EMPTY
    first = optional(sequence(others, after)) if others != NOTHING else EMPTY
    for at in range(len(pairs) - 1, -1, -1):
        pair, needed = pairs[at]
        pair = rules.add("property", pair)
        first = sequence(pair, after) if needed else rules.add("first", choice(sequence(pair, after), first))
        together = sequence(_COMMA, pair)
        after = sequence(together if needed else optional(together), after)
        if at % 8 == 0:
            after = rules.add("after", after)
    return rules.add("object", sequence(Literal("{"), first, Literal("}")))


def _counted(
    compiler: SchemaCompiler, pairs: list[tuple[Node, bool]], others: Node, least: int, most: int | None
) -> Node:
    """Objects with a count of properties: what may follow, by place and by how many there were."""
    rules = compiler.rules
    highest = max(least, most or 0)  # counts above are all the same
    following = [_remaining(compiler, others, count, least, most) for count in range(highest + 1)]
    for pair, needed in reversed(pairs):
        name = rules.add("property", pair)
        now = []
        for count in range(highest + 1):
            with_it: Node = NOTHING
            if most is None or count < most:
                written = sequence(_COMMA, name) if count else name
                with_it = sequence(written, following[min(count + 1, highest)])
            now.append(rules.add("counted", with_it if needed else choice(with_it, following[count])))
        following = now
    return rules.add("object", sequence(Literal("{"), following[0], Literal("}")))


def _remaining(compiler: SchemaCompiler, others: Node, count: int, least: int, most: int | None) -> Node:
    """The other pairs after `count` of them."""
    missing, room = max(0, least - count), None if most is None else most - count
    if others == NOTHING or room == 0:
        return EMPTY if missing == 0 else NOTHING
    comma = sequence(_COMMA, others)
    if count:
        return compiler.rules.repeated(comma, missing, room, "more")
    rest = compiler.rules.repeated(comma, max(0, missing - 1), None if room is None else room - 1, "more")
    return sequence(others, rest) if missing else optional(sequence(others, rest))
