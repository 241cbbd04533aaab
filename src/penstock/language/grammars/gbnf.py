"""Rules as GBNF text: the dialect in which llama.cpp and xgrammar (OpenVINO, vLLM) mean the same.

What both take, found by trying: names of letters, digits and dashes; one rule a line; `\\uXXXX` and `\\UXXXXXXXX`
(`\\xHH` takes any number of digits in xgrammar, two in llama.cpp); no escape of `-` or `^`, so those are numbers too.
"""

from __future__ import annotations

from penstock.core.errors import InvalidInput
from penstock.language.grammars import nodes
from penstock.language.grammars.emptiness import without_empty_repeats
from penstock.language.grammars.nodes import (
    NOTHING,
    Characters,
    Choice,
    Literal,
    Node,
    Ranges,
    Reference,
    Repeat,
    Rules,
    Sequence,
    complement,
    every,
)

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - frozenset('"\\')
_PLAIN_IN_CLASS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !#$%&'()*+,./:;<=>?@_`{|}~")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}


def write(rules: Rules, root: Node) -> str:
    """The grammar's text; the rule `root` comes first. Only rules that `root` reaches.

    Raises InvalidInput when nothing matches it, or when the text is above the limit.
    """
    bodies = without_empty_repeats(productive(rules, root))
    lines = [f"root ::= {_text(bodies[''], top=True)}"]
    size = len(lines[0])
    for name, body in bodies.items():
        if name:
            lines.append(f"{rule_name(name)} ::= {_text(body, top=True)}")
            size += len(lines[-1])
            if size > rules.limits.text_bytes:
                raise InvalidInput(f"{rules.where}: the compiled grammar is above {rules.limits.text_bytes} bytes")
    return "\n".join(lines) + "\n"


def rule_name(name: str) -> str:
    """The name as every dialect takes it, and never `root`."""
    return "root-rule" if name == "root" else name


def productive(rules: Rules, root: Node) -> dict[str, Node]:
    """The rules that `root` (named "") reaches, without alternatives that can never end.

    Raises InvalidInput when nothing at all matches.
    """
    bodies = {"": root}
    waiting = [root]
    while waiting:
        for node in every(waiting.pop()):
            if isinstance(node, Reference) and node.name not in bodies:
                bodies[node.name] = rules.bodies[node.name]
                waiting.append(bodies[node.name])
    users: dict[str, set[str]] = {}
    for name, body in bodies.items():
        for node in every(body):
            if isinstance(node, Reference):
                users.setdefault(node.name, set()).add(name)
    ends: set[str] = set()
    look = list(bodies)
    while look:
        name = look.pop()
        if name not in ends and _ends(bodies[name], ends):
            ends.add(name)
            look.extend(users.get(name, ()))
    if "" not in ends:
        raise InvalidInput(f"{rules.where}: nothing can match this; its parts contradict each other or never end")
    if len(ends) == len(bodies) and not any(NOTHING in every(body) for body in bodies.values()):
        return bodies
    kept: dict[str, Node] = {}
    waiting_names = [""]
    while waiting_names:
        name = waiting_names.pop(0)
        if name in kept:
            continue
        kept[name] = _pruned(bodies[name], ends)
        waiting_names.extend(node.name for node in every(kept[name]) if isinstance(node, Reference))
    return kept


def _ends(node: Node, ends: set[str]) -> bool:
    if isinstance(node, Reference):
        return node.name in ends
    if isinstance(node, Sequence):
        return all(_ends(item, ends) for item in node.items)
    if isinstance(node, Choice):
        return any(_ends(item, ends) for item in node.items)
    return node.least == 0 or _ends(node.item, ends) if isinstance(node, Repeat) else True


def _pruned(node: Node, ends: set[str]) -> Node:
    if isinstance(node, Sequence):
        return nodes.sequence(*(_pruned(item, ends) for item in node.items))
    if isinstance(node, Choice):
        return nodes.choice(*(_pruned(item, ends) for item in node.items))
    if isinstance(node, Repeat):
        return nodes.repeat(_pruned(node.item, ends), node.least, node.most)
    return NOTHING if isinstance(node, Reference) and node.name not in ends else node


def _text(node: Node, top: bool = False) -> str:
    """One node; what binds weaker than its surroundings stands in brackets unless it is at the `top`."""
    if isinstance(node, Literal):
        return quoted(node.text)
    if isinstance(node, Reference):
        return rule_name(node.name)
    if isinstance(node, Characters):
        return character_class(node.ranges)
    if isinstance(node, Repeat):
        inner = f"({_text(node.item)})" if isinstance(node.item, Repeat) else _text(node.item)
        return inner + _count(node.least, node.most)
    if isinstance(node, Sequence):
        text = " ".join(_joined(node.items)) or '""'
        return text if top or " " not in text else f"({text})"
    text = " | ".join(_text(item, top=True) for item in node.items)
    return text if top else f"({text})"


def _joined(items: tuple[Node, ...]) -> list[str]:
    """The items' texts, neighbouring literals made one."""
    parts: list[str] = []
    pending = ""
    for item in items:
        if isinstance(item, Literal):
            pending += item.text
            continue
        if pending:
            parts.append(quoted(pending))
            pending = ""
        parts.append(_text(item))
    if pending:
        parts.append(quoted(pending))
    return parts


def _count(least: int, most: int | None) -> str:
    if most is None:
        return "*" if least == 0 else "+" if least == 1 else f"{{{least},}}"
    if (least, most) == (0, 1):
        return "?"
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


def _number(character: int) -> str:
    return f"\\u{character:04X}" if character <= 0xFFFF else f"\\U{character:08X}"


def quoted(text: str) -> str:
    """The text as a literal."""
    return '"' + "".join(c if c in _PLAIN else _SHORT.get(c) or _number(ord(c)) for c in text) + '"'


def character_class(ranges: Ranges) -> str:
    """The ranges as a class, negated where that is shorter."""
    others = complement(ranges)
    if ranges[-1][1] == 0x10FFFF and others and len(others) <= len(ranges):
        return f"[^{_class_body(others)}]"
    return f"[{_class_body(ranges)}]"


def _class_body(ranges: Ranges) -> str:
    def one(character: int) -> str:
        text = chr(character)
        return text if text in _PLAIN_IN_CLASS else _number(character)

    return "".join(one(low) if low == high else f"{one(low)}-{one(high)}" for low, high in ranges)
