"""Repetitions of what may be empty, rewritten: `(a?)*` as `a*`.

llama.cpp makes `x*` a rule that calls itself after `x`. With an `x` that may be empty this is a rule that begins with
itself, which it refuses, and other engines go around in.
"""

from __future__ import annotations

from penstock.language.grammars.nodes import (
    NOTHING,
    Choice,
    Node,
    Reference,
    Repeat,
    Sequence,
    choice,
    every,
    repeat,
    sequence,
)


def nullable_rules(bodies: dict[str, Node]) -> set[str]:
    """The rules that match the empty text."""
    users: dict[str, list[str]] = {}
    for name, body in bodies.items():
        for node in every(body):
            if isinstance(node, Reference):
                users.setdefault(node.name, []).append(name)
    found: set[str] = set()
    waiting = list(bodies)
    while waiting:
        name = waiting.pop()
        if name not in found and may_be_empty(bodies[name], found):
            found.add(name)
            waiting.extend(users.get(name, ()))
    return found


def may_be_empty(node: Node, nullable: set[str]) -> bool:
    if isinstance(node, Reference):
        return node.name in nullable
    if isinstance(node, Sequence):
        return all(may_be_empty(item, nullable) for item in node.items)
    if isinstance(node, Choice):
        return any(may_be_empty(item, nullable) for item in node.items)
    return isinstance(node, Repeat) and (node.least == 0 or may_be_empty(node.item, nullable))


def without_empty_repeats(bodies: dict[str, Node]) -> dict[str, Node]:
    """The same rules, and more where needed, in which nothing that may be empty is repeated."""
    nullable = nullable_rules(bodies)
    if not any(
        isinstance(node, Repeat) and may_be_empty(node.item, nullable)
        for body in bodies.values()
        for node in every(body)
    ):
        return bodies
    rewriter = _Rewriter(bodies, nullable)
    found = {name: rewriter.rewritten(body) for name, body in bodies.items()}
    while rewriter.wanted:
        name = rewriter.wanted.pop()
        found[rewriter.filled_names[name]] = rewriter.filled(bodies[name])
    return found


class _Rewriter:
    def __init__(self, bodies: dict[str, Node], nullable: set[str]) -> None:
        self.bodies, self.nullable = bodies, nullable
        self.filled_names: dict[str, str] = {}
        self.wanted: list[str] = []

    def rewritten(self, node: Node) -> Node:
        if isinstance(node, Sequence):
            return sequence(*(self.rewritten(item) for item in node.items))
        if isinstance(node, Choice):
            return choice(*(self.rewritten(item) for item in node.items))
        if isinstance(node, Repeat):
            if may_be_empty(node.item, self.nullable):
                return repeat(self.filled(node.item), 0, node.most)
            return repeat(self.rewritten(node.item), node.least, node.most)
        return node

    def filled(self, node: Node) -> Node:
        """The node's texts without the empty one."""
        if not may_be_empty(node, self.nullable):
            return self.rewritten(node)
        if isinstance(node, Reference):
            if node.name not in self.filled_names:
                name = f"filled-{node.name}"
                while name in self.bodies or name in self.filled_names.values():
                    name += "-x"
                self.filled_names[node.name] = name
                self.wanted.append(node.name)
            return Reference(self.filled_names[node.name])
        if isinstance(node, Choice):
            return choice(*(self.filled(item) for item in node.items))
        if isinstance(node, Repeat):
            most = None if node.most is None else node.most
            return repeat(self.filled(node.item), 1, most)
        if not isinstance(node, Sequence) or not node.items:
            return NOTHING
        # All items may be empty: the first that is not, and the rest as they come.
        ways = []
        for at, item in enumerate(node.items):
            ways.append(sequence(self.filled(item), *(self.rewritten(rest) for rest in node.items[at + 1 :])))
        return choice(*ways)
