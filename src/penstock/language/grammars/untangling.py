"""Rules that a text can be read by in very many ways at once, written so that there are few; or refused.

llama.cpp follows every way, at every token of its vocabulary: `(([a-z]+)? ?([a-z]+)?){1,300}` has hundreds from its
beginning on, and stops a whole server for minutes (see `ways`). A deterministic automaton has one way; what contains
itself has none, and is refused where it is too much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from penstock.core.errors import InvalidInput
from penstock.language.grammars import automaton, gbnf
from penstock.language.grammars.emptiness import without_empty_repeats
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
from penstock.language.grammars.ways import too_many, ways

# Found by trying: 1,000 states are made in well under a second, and llama.cpp reads their rules in milliseconds.
_MOST_STATES = 1000
_MOST_TRIES = 12  # rules that are made automata, each of which is tried by itself
_PART = 8_000  # units of `Work`, to look whether a part is tangled


def untangled(rules: Rules, root: Node) -> tuple[Rules, Node]:
    """The rules themselves where few ways have to be followed; else others for the same texts.

    Raises InvalidInput where there are none within the limits.
    """
    bodies = gbnf.productive(rules, root)
    if not ways(without_empty_repeats(bodies)).too_many:
        return rules, root
    plain, made = rules.copy(), rules.copy()
    for copied in (plain, made):
        copied.bodies |= {name: body for name, body in bodies.items() if name}
    root = bodies[""]
    circular = _circular(bodies)
    tries = [name for name in _inner_first(bodies) if name and name not in circular][: _MOST_TRIES * 4]
    for name in too_many(without_empty_repeats(bodies), tries)[:_MOST_TRIES]:
        now = without_empty_repeats(gbnf.productive(made, Reference(name)))
        if ways(now, rules.work).too_many:
            made.bodies[name] = _one_way(bodies[name], plain, made)
    if ways(without_empty_repeats(gbnf.productive(made, root))).too_many:
        for name, body in bodies.items():
            if name in circular:
                made.bodies[name] = _parts_one_way(body, plain, made, circular)
        root = _parts_one_way(root, plain, made, circular)
    if ways(without_empty_repeats(gbnf.productive(made, root))).too_many:
        raise InvalidInput(
            f"{rules.where}: a text can be read in too many ways at once; put one repetition where repetitions stand "
            "inside each other, and let alternatives begin with different characters"
        )
    return made, root


def _parts_one_way(node: Node, rules: Rules, made: Rules, circular: set[str]) -> Node:
    """The node, its largest parts without recursion made automata where they have many ways."""
    if not any(name in circular for name in _references(node)):
        return _one_way(node, rules, made)
    if isinstance(node, Sequence):
        return sequence(*(_parts_one_way(item, rules, made, circular) for item in node.items))
    if isinstance(node, Choice):
        return choice(*(_parts_one_way(item, rules, made, circular) for item in node.items))
    return (
        repeat(_parts_one_way(node.item, rules, made, circular), node.least, node.most)
        if isinstance(node, Repeat)
        else node
    )


def _one_way(node: Node, rules: Rules, made: Rules) -> Node:
    """A node of `rules`, or one of `made` for the same texts with one way each; the node where that takes too many."""
    rules.work.left -= _PART + len(rules.bodies)
    if rules.work.left < 0:
        return node
    node = _flat(node, rules)
    for name, body in rules.bodies.items():  # rules of repetitions that came with it
        made.bodies.setdefault(name, body)
    if not ways(without_empty_repeats(gbnf.productive(rules, node)), rules.work).too_many:
        return node
    limits = dataclasses.replace(rules.limits, states=min(_MOST_STATES, rules.limits.states))
    own = Rules(limits, rules.where, rules.work)
    own.bodies = rules.bodies  # only read
    try:
        found = automaton.build(node, own)
        return node if automaton.empty(found) else automaton.nodes(found, made, "way", Characters)
    except InvalidInput:  # too many states, or rules
        return node


def _flat(node: Node, rules: Rules) -> Node:
    """A repetition directly inside a repetition is one, where every count in between can be had."""
    if isinstance(node, Sequence):
        return sequence(*(_flat(item, rules) for item in node.items))
    if isinstance(node, Choice):
        return choice(*(_flat(item, rules) for item in node.items))
    if not isinstance(node, Repeat):
        return node
    inner = _flat(node.item, rules)
    if isinstance(inner, Repeat) and inner.least <= 1 and inner.least != inner.most and node.most != 0:
        least = inner.least * node.least
        most = None if inner.most is None or node.most is None else inner.most * node.most
        if max(least, most or 0) <= rules.limits.repeats:
            return rules.repeated(inner.item, least, most)
    return repeat(inner, node.least, node.most)


def _references(node: Node) -> Iterable[str]:
    return (found.name for found in every(node) if isinstance(found, Reference))


def _inner_first(bodies: dict[str, Node]) -> list[str]:
    """The names, each after those that it refers to as far as they go in no circle."""
    order: list[str] = []
    seen: set[str] = set()
    for start in bodies:
        stack = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack.extend((other, False) for other in _references(bodies[name]))
    return order


def _circular(bodies: dict[str, Node]) -> set[str]:
    """The rules that contain themselves, or one that does."""
    plain: set[str] = set()
    users: dict[str, list[str]] = {}
    left = {name: set(_references(body)) for name, body in bodies.items()}
    for name, used in left.items():
        for other in used:
            users.setdefault(other, []).append(name)
    waiting = [name for name, used in left.items() if not used]
    while waiting:
        name = waiting.pop()
        plain.add(name)
        for user in users.get(name, ()):
            left[user].discard(name)
            if not left[user]:
                waiting.append(user)
    return set(bodies) - plain
