"""Rules as a Lark grammar for llguidance, which has a lexer: what the lexer reads as one token must never be cut short.

Three ways, the fastest that is exact: JSON token by token, where its strings and numbers are rules of their own; one
pattern, where nothing contains itself; else character by character.
"""

from __future__ import annotations

import json

from penstock.language.grammars.emptiness import may_be_empty, nullable_rules
from penstock.language.grammars.nodes import (
    EMPTY,
    Characters,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    choice,
    every,
)

# Where only one text can follow, llguidance would allow one way of tokens for it only, its own.
_NO_FORCING = '%llguidance {"no_forcing": true}'
_LARGEST_PATTERN = 600  # nodes of a grammar that is one pattern; above, its automaton may be too large


def write(bodies: dict[str, Node], rules: Rules, always_json: bool) -> str:
    """The grammar's text; `bodies` has the root under ""."""
    if always_json and not rules.split and (lexical := _tokens(bodies, rules)) is not None:
        return _Writer(bodies, lexical, split=False).text()
    recursive = _recursive(bodies)
    if not recursive and sum(1 for body in bodies.values() for _ in every(body)) <= _LARGEST_PATTERN:
        nullable = may_be_empty(bodies[""], nullable_rules(bodies))
        name = "all"
        while name in bodies:
            name += "-x"
        everything = {key: body for key, body in bodies.items() if key} | {name: bodies[""]}
        root: Node = Repeat(Reference(name), 0, 1) if nullable else Reference(name)
        return _Writer({"": root} | everything, set(everything), split=False).text()
    return _Writer(bodies, set(), split=True).text()


def _tokens(bodies: dict[str, Node], rules: Rules) -> set[str] | None:
    """The rules that are tokens, with all within them; None when characters stand outside of tokens."""
    inside: set[str] = set()
    outside: set[str] = set()
    waiting = [("", False)]
    while waiting:
        name, within = waiting.pop()
        if name in (inside if within else outside):
            continue
        (inside if within else outside).add(name)
        for node in every(bodies[name]):
            if isinstance(node, Characters) and not within:
                return None
            if isinstance(node, Reference):
                waiting.append((node.name, within or node.name in rules.lexical))
    if inside & outside or _recursive({name: bodies[name] for name in inside}):
        return None
    return inside


def _recursive(bodies: dict[str, Node]) -> bool:
    state: dict[str, int] = {}
    for start in bodies:
        stack = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                state[name] = 2
                continue
            if state.get(name) == 2:
                continue
            if state.get(name) == 1:
                return True
            state[name] = 1
            stack.append((name, True))
            for node in every(bodies[name]):
                if isinstance(node, Reference):
                    if state.get(node.name) == 1:
                        return True
                    if state.get(node.name) is None:
                        stack.append((node.name, False))
    return False


class _Writer:
    def __init__(self, bodies: dict[str, Node], lexical: set[str], split: bool) -> None:
        self.bodies, self.lexical, self.split = bodies, lexical, split

    def text(self) -> str:
        lines = [_NO_FORCING, f"start: {self.alternatives(self.bodies[''])}"]
        lines += [f"{self.name(name)}: {self.alternatives(body)}" for name, body in self.bodies.items() if name]
        return "\n".join(lines) + "\n"

    def name(self, name: str) -> str:
        plain = name.replace("-", "_")
        return (
            f"T_{plain.upper()}_{self.case(name)}" if name in self.lexical else f"r_{plain.lower()}_{self.case(name)}"
        )

    @staticmethod
    def case(name: str) -> str:
        """Which letters were capitals: names that differ by them only stay apart."""
        return "".join(str(int(c.isupper())) for c in name if c.isalpha())[:40].lstrip("0") or "0"

    def alternatives(self, node: Node) -> str:
        if isinstance(node, Choice) and EMPTY in node.items:
            rest = choice(*(item for item in node.items if item != EMPTY))
            return f"({self.alternatives(rest)})?"
        if isinstance(node, Choice):
            return " | ".join(self.one(item) for item in node.items)
        return self.one(node)

    def one(self, node: Node) -> str:
        if isinstance(node, Literal):
            parts = list(node.text) if self.split else [node.text]
            return " ".join(json.dumps(part, ensure_ascii=False) for part in parts)
        if isinstance(node, Characters):
            return f"/{_class(node)}/"
        if isinstance(node, Reference):
            return self.name(node.name)
        if isinstance(node, Sequence):
            return (
                " ".join(self.grouped(item) if isinstance(item, Choice) else self.one(item) for item in node.items)
                or '""'
            )
        if isinstance(node, Repeat):
            most = "" if node.most is None else node.most
            return f"{self.grouped(node.item)}{{{node.least},{most}}}"
        return self.grouped(node)

    def grouped(self, node: Node) -> str:
        return f"({self.alternatives(node)})"


def _class(node: Characters) -> str:
    def one(code: int) -> str:
        c = chr(code)
        return c if c.isascii() and c.isalnum() else f"\\u{{{code:X}}}"

    return "[" + "".join(one(low) if low == high else f"{one(low)}-{one(high)}" for low, high in node.ranges) + "]"
