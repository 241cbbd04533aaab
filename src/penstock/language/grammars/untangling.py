"""Repetitions inside repetitions, written so that an engine has one way to follow, not hundreds.

llama.cpp follows every way that a text can be read, at every token of its vocabulary: `(([a-z]+)? ?([a-z]+)?){1,300}`
has hundreds from its beginning on, and stops a whole server for minutes. A deterministic automaton has one way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from penstock.language.grammars import automaton
from penstock.language.grammars.nodes import (
    Characters,
    Choice,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    choice,
    every,
    repeat,
    sequence,
)

# Found by trying: 1,000 states are made in well under a second, and llama.cpp reads their rules in milliseconds.
_MOST_STATES = 1000


def untangled(node: Node, rules: Rules) -> Node:
    """The node, or rules for the same texts with one way each where the node may have many. The node itself where that
    would take too many rules."""
    node = _flat(node, rules)
    if not tangled(node, rules):
        return node
    own = Rules(dataclasses.replace(rules.limits, states=min(_MOST_STATES, rules.limits.states)), rules.where)
    own.bodies = rules.bodies  # only read
    try:
        found = automaton.build(node, own)
    except automaton.TooManyStates:
        return node
    return automaton.nodes(found, rules, "way", Characters) if not automaton.empty(found) else node


def _flat(node: Node, rules: Rules) -> Node:
    """A repetition directly inside a repetition is one, where every count in between can be had."""
    if isinstance(node, Sequence):
        return sequence(*(_flat(item, rules) for item in node.items))
    if isinstance(node, Choice):
        return choice(*(_flat(item, rules) for item in node.items))
    if not isinstance(node, Repeat):
        return node
    inner = _flat(node.item, rules)
    if isinstance(inner, Repeat) and inner.least <= 1 and _varies(inner) and node.most != 0:
        least = inner.least * node.least
        most = None if inner.most is None or node.most is None else inner.most * node.most
        if max(least, most or 0) <= rules.limits.repeats:
            return rules.repeated(inner.item, least, most)
    return repeat(inner, node.least, node.most)


def tangled(node: Node, rules: Rules) -> bool:
    """Whether a repetition stands inside a repetition, both of them of no fixed count. For a node without recursion."""
    return any(
        isinstance(outer, Repeat) and _varies(outer) and outer.most != 1
        and any(isinstance(inner, Repeat) and _varies(inner) for inner in _reached(outer.item, rules))
        for outer in _reached(node, rules)
    )  # fmt: skip


def _reached(node: Node, rules: Rules) -> Iterator[Node]:
    """The node and all within it, each rule once."""
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        for found in every(waiting.pop()):
            yield found
            if isinstance(found, Reference) and found.name not in seen:
                seen.add(found.name)
                waiting.append(rules.bodies[found.name])


def _varies(node: Repeat) -> bool:
    return node.least != node.most
