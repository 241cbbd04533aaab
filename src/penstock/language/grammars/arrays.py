"""JSON arrays of a schema: the first items by their places, then others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.language.grammars import keywords, merging
from penstock.language.grammars.nodes import EMPTY, NOTHING, Literal, Node, optional, sequence

if TYPE_CHECKING:
    from penstock.language.grammars.keywords import Schema
    from penstock.language.grammars.schema import SchemaCompiler

_COMMA = Literal(",")


def array(compiler: SchemaCompiler, schema: Schema, where: str) -> Node:
    first, rest = merging.places(schema, where)
    least, most = keywords.count(schema, "minItems", where) or 0, keywords.count(schema, "maxItems", where)
    if schema.get("contains") not in (None, False) and "minContains" not in schema and least == 0:
        least = 1
    if most is not None and least > most:
        return NOTHING
    items = [compiler.compile(item, f"{where}.prefixItems[{at}]") for at, item in enumerate(first)]
    if most is not None:
        items = items[:most]
    other = (
        compiler.rules.add("item", compiler.compile(rest, f"{where}.items"))
        if most is None or most > len(items)
        else NOTHING
    )
    if NOTHING in items:
        items, other = items[: items.index(NOTHING)], NOTHING
    more = None if most is None else most - len(items)
    missing = max(0, least - len(items))
    if items:
        tail = compiler.rules.repeated(sequence(_COMMA, other), missing, more, "items")
    elif missing or more != 0:
        after = compiler.rules.repeated(
            sequence(_COMMA, other), max(0, missing - 1), None if more is None else more - 1, "items"
        )
        tail = sequence(other, after) if missing else optional(sequence(other, after))
    else:
        tail = EMPTY
    for at in range(len(items) - 1, -1, -1):
        tail = sequence(_COMMA, items[at], tail) if at else sequence(items[at], tail)
        if at >= least:
            tail = compiler.rules.add("rest", optional(tail))
    return compiler.rules.add("array", sequence(Literal("["), tail, Literal("]")))
