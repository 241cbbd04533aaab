"""Regular parts of grammars as deterministic automata, for what grammars cannot say: both of two things, or one without
the other. A pattern with a length, a key that is none of the known ones, a multiple of seven within a range.

Source: Thompson's construction and the subset construction, as in Hopcroft, Motwani, Ullman, chapters 2 to 4. Edges are
ranges of characters, so the alphabet's size does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.language.grammars.nodes import (
    EMPTY,
    Characters,
    Choice,
    Literal,
    Node,
    Ranges,
    Reference,
    Repeat,
    Rules,
    Sequence,
    choice,
    normal,
    repeat,
    sequence,
)

Edges = tuple[tuple[int, int, int], ...]  # from and to which character, inclusive, and the state they lead to; sorted


@dataclass(slots=True)
class Work:
    """How much may still be done: loose states in all sets of them. So many take about a second."""

    left: int = 4_000_000


class TooManyStates(InvalidInput):
    """The automaton is above its limit. What only needs one to be exact catches this and leaves it to validation."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """State 0 is the start. A character without an edge leads nowhere."""

    edges: tuple[Edges, ...]
    accepts: tuple[bool, ...]

    def matches(self, text: str) -> bool:
        state = 0
        for c in text:
            code = ord(c)
            for low, high, target in self.edges[state]:
                if low <= code <= high:
                    state = target
                    break
            else:
                return False
        return self.accepts[state]


class _Loose:
    """The automaton with free moves, while it is made."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.free: list[list[int]] = []
        self.moves: list[list[tuple[Ranges, int]]] = []

    def state(self) -> int:
        if len(self.free) > 8 * self.rules.limits.states:
            raise TooManyStates(f"{self.rules.where}: too large to be combined with other conditions")
        self.free.append([])
        self.moves.append([])
        return len(self.free) - 1

    def add(self, node: Node, start: int) -> int:
        """The state after the node."""
        if isinstance(node, Literal):
            for c in node.text:
                start = self._move(((ord(c), ord(c)),), start)
            return start
        if isinstance(node, Characters):
            return self._move(node.ranges, start)
        if isinstance(node, Reference):
            return self.add(self.rules.bodies[node.name], start)
        if isinstance(node, Sequence):
            for item in node.items:
                start = self.add(item, start)
            return start
        end = self.state()
        if isinstance(node, Choice):
            for item in node.items:
                self.free[self.add(item, start)].append(end)
            return end
        assert isinstance(node, Repeat)
        for _ in range(node.least):
            start = self.add(node.item, start)
        if node.most is None:
            hub = self.state()
            self.free[start].append(hub)
            self.free[self.add(node.item, hub)].append(hub)
            return hub
        self.free[start].append(end)
        for _ in range(node.most - node.least):
            start = self.add(node.item, start)
            self.free[start].append(end)
        return end

    def _move(self, ranges: Ranges, start: int) -> int:
        end = self.state()
        self.moves[start].append((ranges, end))
        return end

    def closure(self, states: frozenset[int]) -> frozenset[int]:
        found, waiting = set(states), list(states)
        while waiting:
            for target in self.free[waiting.pop()]:
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        return frozenset(found)


def build(node: Node, rules: Rules, work: Work | None = None) -> Automaton:
    """The automaton of a node without recursion; several may share `work`. Raises TooManyStates."""
    work = work or Work()
    loose = _Loose(rules)
    final = loose.add(node, loose.state())
    first = loose.closure(frozenset((0,)))
    numbers, order, edges = {first: 0}, [first], []
    for states in order:
        work.left -= len(states)
        if work.left < 0:
            raise TooManyStates(f"{rules.where}: has too many beginnings of parts at once; make it smaller")
        out: list[tuple[int, int, int]] = []
        alike: dict[Ranges, list[int]] = {}
        for state in states:
            for ranges, target in loose.moves[state]:
                alike.setdefault(ranges, []).append(target)
        moves = [(low, high, targets) for ranges, targets in alike.items() for low, high in ranges]
        cuts = sorted({low for low, _, _ in moves} | {high + 1 for _, high, _ in moves})
        closures: dict[frozenset[int], frozenset[int]] = {}
        for low, after in itertools.pairwise(cuts):
            reached = frozenset(target for a, b, targets in moves if a <= low <= b for target in targets)
            if not reached:
                continue
            if reached not in closures:
                closures[reached] = loose.closure(reached)
            whole = closures[reached]
            if whole not in numbers:
                _check_states(len(order), rules)
                numbers[whole] = len(order)
                order.append(whole)
            out.append((low, after - 1, numbers[whole]))
        edges.append(tuple(out))
    return _trimmed(edges, [final in states for states in order])


def _check_states(states: int, rules: Rules) -> None:
    if states >= rules.limits.states:
        raise TooManyStates(
            f"{rules.where}: needs an automaton of more than {rules.limits.states} states; make it smaller"
        )


def both(one: Automaton, other: Automaton, rules: Rules) -> Automaton:
    """What matches one and the other."""
    return _product(one, other, rules, lambda a, b: a and b, keep_lost=False)


def without(one: Automaton, other: Automaton, rules: Rules) -> Automaton:
    """What matches `one` and not `other`."""
    return _product(one, other, rules, lambda a, b: a and not b, keep_lost=True)


def _product(
    one: Automaton, other: Automaton, rules: Rules, accept: Callable[[bool, bool], bool], *, keep_lost: bool
) -> Automaton:
    lost = -1  # `other` can match no more
    numbers, order = {(0, 0): 0}, [(0, 0)]
    edges: list[list[tuple[int, int, int]]] = []
    for a, b in order:
        out: list[tuple[int, int, int]] = []
        for low, high, target in one.edges[a]:
            for low_b, high_b, target_b in _split(low, high, other.edges[b] if b != lost else ()):
                if target_b == lost and not keep_lost:
                    continue
                pair = (target, target_b)
                if pair not in numbers:
                    _check_states(len(order), rules)
                    numbers[pair] = len(order)
                    order.append(pair)
                out.append((low_b, high_b, numbers[pair]))
        edges.append(out)
    accepts = [accept(one.accepts[a], b != lost and other.accepts[b]) for a, b in order]
    return _trimmed([tuple(out) for out in edges], accepts)


def _split(low: int, high: int, edges: Edges) -> list[tuple[int, int, int]]:
    """The range in pieces by where the edges lead; -1 where there is none."""
    pieces = []
    for start, end, target in edges:
        if end < low or start > high:
            continue
        if start > low:
            pieces.append((low, start - 1, -1))
        pieces.append((max(low, start), min(high, end), target))
        low = min(high, end) + 1
    if low <= high:
        pieces.append((low, high, -1))
    return pieces


def _trimmed(edges: list[Edges], accepts: list[bool]) -> Automaton:
    """Without the states from which nothing is accepted; the start stays."""
    before: list[list[int]] = [[] for _ in edges]
    for state, out in enumerate(edges):
        for _, _, target in out:
            before[target].append(state)
    alive = {state for state, accepted in enumerate(accepts) if accepted}
    waiting = list(alive)
    while waiting:
        for state in before[waiting.pop()]:
            if state not in alive:
                alive.add(state)
                waiting.append(state)
    kept = [0, *sorted(alive - {0})]
    numbers = {state: number for number, state in enumerate(kept)}
    return Automaton(
        tuple(tuple((low, high, numbers[t]) for low, high, t in edges[state] if t in alive) for state in kept),
        tuple(accepts[state] for state in kept),
    )


def empty(automaton: Automaton) -> bool:
    """Whether it accepts nothing."""
    return len(automaton.edges) == 1 and not automaton.accepts[0]


def nodes(automaton: Automaton, rules: Rules, hint: str, encode: Callable[[Ranges], Node]) -> Node:
    """The automaton as rules, one per state that is reached by more than one way. `encode` writes characters."""
    if empty(automaton):
        return choice()
    rules.split = True
    uses = [0] * len(automaton.edges)
    for out in automaton.edges:
        for target in {t for _, _, t in out}:
            uses[target] += 1
    references = {
        state: rules.reserve(hint)
        for state in range(len(automaton.edges))
        if state == 0 or (uses[state] != 1 and automaton.edges[state])
    }
    order = _inner_first(automaton, references, lambda: rules.reserve(hint))

    def body(state: int) -> Node:
        by_target: dict[int, list[tuple[int, int]]] = {}
        for low, high, target in automaton.edges[state]:
            by_target.setdefault(target, []).append((low, high))
        loop = by_target.pop(state, None)
        ways = [sequence(encode(normal(ranges)), chained(target)) for target, ranges in by_target.items()]
        if automaton.accepts[state]:
            ways.append(EMPTY)
        around = repeat(encode(normal(loop)), 0, None) if loop else EMPTY
        return sequence(around, choice(*ways))

    def chained(state: int) -> Node:
        if not automaton.edges[state]:
            return EMPTY
        return references[state] if state in references else pending.pop(state)

    # States with one way in stand where they are used, innermost first.
    pending: dict[int, Node] = {}
    for state in order:
        pending[state] = body(state)
    for state, reference in references.items():
        rules.define(reference, body(state))
    return references[0]


_DEEPEST = 16  # states inside each other in one rule: what walks nodes calls itself once per level


def _inner_first(automaton: Automaton, references: dict[int, Reference], reserve: Callable[[], Reference]) -> list[int]:
    """The states that have no rule of their own, each after those that stand inside it. Where too many would stand
    inside each other, one gets a rule (is added to `references`)."""
    order: list[int] = []
    stack = [(root, 0) for root in references]
    while stack:
        state, depth = stack.pop()
        for target in {t for _, _, t in automaton.edges[state]}:
            if target in references or target == state or not automaton.edges[target]:
                continue
            if depth >= _DEEPEST:
                references[target] = reserve()
                stack.append((target, 0))
            else:
                order.append(target)
                stack.append((target, depth + 1))
    return order[::-1]
