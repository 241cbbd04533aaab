"""JSON strings as nodes: of any text, of a length, of a pattern, of a format, and keys other than the known ones.

What has a pattern or a format is written in one way only (no needless escapes), so that a set of texts is a set of
JSON strings. Free strings may have every escape of RFC 8259, but no half of a surrogate pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from penstock.language.grammars import automaton, pattern
from penstock.language.grammars.nodes import (
    EVERY_CHARACTER,
    Characters,
    Choice,
    Literal,
    Node,
    Ranges,
    Repeat,
    Rules,
    Sequence,
    characters,
    choice,
    common,
    complement,
    literal,
    repeat,
    sequence,
)

QUOTE = Literal('"')
_ESCAPED: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_RAW = complement(_ESCAPED)
_HEX = [(48, 57), (65, 70), (97, 102)]


def encode(ranges: Ranges) -> Node:
    """One of the characters, as it stands inside a JSON string: what must be escaped in its shortest form."""
    raw = common(ranges, _RAW)
    short: list[tuple[int, int]] = []
    numbered: dict[str, list[tuple[int, int]]] = {}  # last digits by the digit before
    for low, high in common(ranges, _ESCAPED):
        for code in range(low, high + 1):
            text = json.dumps(chr(code))[1:-1]
            if len(text) == 2:
                short.append((ord(text[1]), ord(text[1])))
            else:
                numbered.setdefault(text[4], []).append((ord(text[5]), ord(text[5])))
    escapes = [characters(short)] if short else []
    escapes += [sequence(literal(f"u00{digit}"), characters(last)) for digit, last in numbered.items()]
    return choice(characters(raw), sequence(Literal("\\"), choice(*escapes)))


def encoded(node: Node, rules: Rules) -> Node:
    """The texts of a node (without recursion) as they stand inside a JSON string."""
    if isinstance(node, Literal):
        return literal(json.dumps(node.text, ensure_ascii=False)[1:-1])
    if isinstance(node, Characters):
        return encode(node.ranges)
    if isinstance(node, Sequence):
        return sequence(*(encoded(item, rules) for item in node.items))
    if isinstance(node, Choice):
        return choice(*(encoded(item, rules) for item in node.items))
    if isinstance(node, Repeat):
        return repeat(encoded(node.item, rules), node.least, node.most)
    return rules.add("text", encoded(rules.bodies[node.name], rules))


def free_character() -> Node:
    """One character of a JSON string in any of its forms; a pair of surrogate escapes is one character."""
    digit = characters(_HEX)
    not_d = characters([(48, 57), (65, 67), (69, 70), (97, 99), (101, 102)])
    d = characters([(68, 68), (100, 100)])
    other = choice(sequence(not_d, repeat(digit, 3, 3)), sequence(d, characters([(48, 55)]), repeat(digit, 2, 2)))
    high = sequence(d, characters([(56, 57), (65, 66), (97, 98)]), repeat(digit, 2, 2))
    low = sequence(d, characters([(67, 70), (99, 102)]), repeat(digit, 2, 2))
    short = characters([(ord(c), ord(c)) for c in '"\\/bfnrt'])
    escape = choice(short, sequence(Literal("u"), choice(other, sequence(high, Literal("\\u"), low))))
    return choice(characters(_RAW), sequence(Literal("\\"), escape))


def free(rules: Rules, least: int = 0, most: int | None = None) -> Node:
    """A JSON string of so many characters."""
    most = rules.limits.longest_string if most is None else most
    if most is not None:
        most = max(least, most)
    one = rules.add("char", free_character())
    text = rules.repeated(one, least, most, "chars")
    return rules.add("string" if (least, most) == (0, None) else "text", sequence(QUOTE, text, QUOTE), lexical=True)


def of_length(least: int, most: int | None, rules: Rules) -> Node:
    return rules.repeated(Characters(EVERY_CHARACTER), least, most)


def of_texts(node: Node, rules: Rules) -> Node:
    """A JSON string whose value is a text of the node."""
    return rules.add("text", sequence(QUOTE, encoded(node, rules), QUOTE), lexical=True)


def of_automaton(found: automaton.Automaton, rules: Rules, hint: str = "text") -> Node:
    """A JSON string whose value the automaton accepts."""
    if automaton.empty(found):
        return choice()

    def one(ranges: Ranges) -> Node:
        node = encode(ranges)
        return rules.add("escaped", node) if isinstance(node, Choice) else node

    return sequence(QUOTE, automaton.nodes(found, rules, hint, one), QUOTE)


def keys_except(names: Iterable[str], taken: Iterable[Node], rules: Rules) -> Node:
    """A key that is none of the `names`, and none that one of the `taken` matches."""
    refused = [*(literal(name) for name in sorted(set(names))), *taken]
    if not refused:
        return free(rules)
    anything = automaton.build(repeat(Characters(EVERY_CHARACTER), 0, None), rules)
    found = automaton.without(anything, automaton.build(choice(*refused), rules), rules)
    return of_automaton(found, rules, "key")


def regular(text: str, rules: Rules) -> Node:
    return pattern.read(text, rules, "format")


_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = "[A-Za-z0-9_%+-]{1,32}"
_GROUP = "[0-9A-Fa-f]{1,4}"
_SHORTENED = "|".join(
    f"(?:{_GROUP}(?::{_GROUP}){{0,{before - 1}}})?::(?:{_GROUP}(?::{_GROUP}){{0,{6 - before}}})?"
    for before in range(1, 7)
)

# Source: RFC 3339 (without leap seconds, which no clock here can check), RFC 4122, RFC 2673, RFC 4291 (without the
# mixed form), RFC 1123. Email and URI are the plain forms of RFC 5321 and RFC 3986: narrower than these, never wider.
FORMATS = {
    "date": _DATE,
    "time": _CLOCK,
    "date-time": f"{_DATE}T{_CLOCK}",
    "duration": "P(?:"
    "[0-9]{1,4}W|(?:[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?|[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,4}D)"
    "(?:T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))?"
    "|T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))",
    "uuid": "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "email": f"{_ATOM}(?:\\.{_ATOM}){{0,3}}@{_LABEL}(?:\\.{_LABEL}){{1,4}}",
    "hostname": f"{_LABEL}(?:\\.{_LABEL}){{0,3}}",
    "ipv4": f"{_BYTE}(?:\\.{_BYTE}){{3}}",
    "ipv6": f"{_GROUP}(?::{_GROUP}){{7}}|(?:{_GROUP}(?::{_GROUP}){{0,6}})?::|{_SHORTENED}",
    "uri": "[A-Za-z][A-Za-z0-9+.-]{0,15}://[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]{1,512}",
}
# Aliases, and formats that say nothing about the text.
FORMATS["idn-email"], FORMATS["iri"] = FORMATS["email"], FORMATS["uri"]
UNCHECKED_FORMATS = frozenset({"password", "binary", "byte", "text", "string", "int32", "int64", "float", "double"})
