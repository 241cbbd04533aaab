"""Numbers and strings of a schema."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from penstock.core.errors import InvalidInput
from penstock.language.grammars import automaton, keywords, numbers, pattern, strings
from penstock.language.grammars.nodes import EVERY_CHARACTER, NOTHING, Characters, Node, repeat

if TYPE_CHECKING:
    from penstock.language.grammars.keywords import Schema
    from penstock.language.grammars.schema import SchemaCompiler


def _bounds(schema: Schema, where: str) -> tuple[Decimal | None, bool, Decimal | None, bool]:
    low, high = keywords.number(schema, "minimum", where), keywords.number(schema, "maximum", where)
    above, below = (
        keywords.number(schema, "exclusiveMinimum", where),
        keywords.number(schema, "exclusiveMaximum", where),
    )
    low_open = above is not None and (low is None or above >= low)
    high_open = below is not None and (high is None or below <= high)
    return (above if low_open else low), low_open, (below if high_open else high), high_open


def integer(compiler: SchemaCompiler, schema: Schema, where: str) -> Node:
    low, low_open, high, high_open = _bounds(schema, where)
    least = most = None
    if low is not None:
        least = int(low) if low == int(low) else int(low) + (low > 0)
        least += low_open and low == least
    if high is not None:
        most = int(high) if high == int(high) else int(high) - (high < 0)
        most -= high_open and high == most
    whole = numbers.integer(least, most, compiler.rules.limits.integer_digits)
    return compiler.rules.add("integer", _multiple(compiler, whole, schema, where), lexical="multipleOf" not in schema)


def _multiple(compiler: SchemaCompiler, whole: Node, schema: Schema, where: str) -> Node:
    of = keywords.number(schema, "multipleOf", where)
    if of is None or whole == NOTHING:
        return whole
    if of <= 0:
        raise InvalidInput(f"{where}.multipleOf: must be above 0")
    if of % 1:
        compiler.validated.add("multipleOf")
        return whole
    try:
        return (
            numbers.multiples(whole, int(of), compiler.rules)
            if of < compiler.rules.limits.states
            else _unkept(compiler, whole)
        )
    except automaton.TooManyStates:
        return _unkept(compiler, whole)


def _unkept(compiler: SchemaCompiler, whole: Node) -> Node:
    compiler.validated.add("multipleOf")
    return whole


def number(compiler: SchemaCompiler, schema: Schema, where: str) -> Node:
    of = keywords.number(schema, "multipleOf", where)
    if of is not None and of % 1 == 0:
        return integer(compiler, schema, where)
    if of is not None:
        compiler.validated.add("multipleOf")
    low, low_open, high, high_open = _bounds(schema, where)
    if low is None and high is None:
        return compiler.rules.add("number", numbers.any_number(compiler.rules.limits.integer_digits), lexical=True)
    for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        bound = keywords.number(schema, key, where)
        if bound is not None and not numbers.exact(bound):
            compiler.validated.add(key)
    return compiler.rules.add("decimal", numbers.decimal(low, low_open, high, high_open, compiler.rules), lexical=True)


def string(compiler: SchemaCompiler, schema: Schema, where: str) -> Node:
    least, most = keywords.count(schema, "minLength", where) or 0, keywords.count(schema, "maxLength", where)
    if most is not None and least > most:
        return NOTHING
    texts = [
        pattern.read(_text_of(item, where, "pattern"), compiler.rules, f"{where}.pattern", search=True)
        for item in keywords.as_list(schema.get("pattern"))
    ]
    for name in keywords.as_list(schema.get("format")):
        if name in strings.FORMATS:
            texts.append(strings.regular(strings.FORMATS[str(name)], compiler.rules))
        elif name not in strings.UNCHECKED_FORMATS:
            known = ", ".join(sorted(strings.FORMATS))
            raise InvalidInput(f"{where}.format: {str(name)[:80]!r} is not supported; these are: {known}")
    if not texts:
        return strings.free(compiler.rules, least, most)
    if len(texts) == 1 and (least, most) == (0, None):
        return strings.of_texts(texts[0], compiler.rules)
    found = automaton.build(texts[0], compiler.rules)
    for text in texts[1:]:
        found = automaton.both(found, automaton.build(text, compiler.rules), compiler.rules)
    if (least, most) != (0, None):
        length = automaton.build(repeat(Characters(EVERY_CHARACTER), least, most), compiler.rules)
        found = automaton.both(found, length, compiler.rules)
    return strings.of_automaton(found, compiler.rules)


def _text_of(value: object, where: str, key: str) -> str:
    return keywords.text({key: value}, key, where)
