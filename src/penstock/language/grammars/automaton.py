"""Regular parts of grammars as deterministic automata, for what grammars cannot say: both of two things, or one without
the other. A pattern with a length, a key that is none of the known ones, a multiple of seven within a range.

Source: Thompson's construction and the subset construction, as in Hopcroft, Motwani, Ullman, chapters 2 to 4. Edges are
ranges of characters, so the alphabet's size does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
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


# Units of `Work`, found by measuring.
_PART = 12  # to walk into a part of a grammar
_EDGE = 24  # to make an edge, and keep it
_MEMBER = 16  # to keep a member of a set


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
        self.moves: list[list[tuple[int, int]]] = []  # the number of a set of characters, and where they lead
        self._sets: list[Ranges] = []
        self._numbers: dict[Ranges, int] = {}
        self._by_node: dict[int, int] = {}  # by the address of a node: long sets are read whole to be found as keys
        self._parts: dict[frozenset[int], list[tuple[frozenset[int], list[tuple[int, int]]]]] = {}

    def spend(self, units: int) -> None:
        spend(self.rules, units)

    def state(self) -> int:
        if len(self.free) > 8 * self.rules.limits.states:
            raise TooManyStates(f"{self.rules.where}: too large to be combined with other conditions")
        self.free.append([])
        self.moves.append([])
        return len(self.free) - 1

    def add(self, node: Node, start: int) -> int:
        """The state after the node."""
        self.spend(_PART)
        if isinstance(node, Literal):
            for c in node.text:
                self.spend(_PART)
                start = self._move(self._set(((ord(c), ord(c)),)), start)
            return start
        if isinstance(node, Characters):
            known = self._by_node.get(id(node))
            if known is None:
                self.spend(len(node.ranges))
                known = self._by_node[id(node)] = self._set(node.ranges)
            return self._move(known, start)
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

    def _set(self, ranges: Ranges) -> int:
        known = self._numbers.get(ranges)
        if known is None:
            known = self._numbers[ranges] = len(self._sets)
            self._sets.append(ranges)
        return known

    def _move(self, characters: int, start: int) -> int:
        end = self.state()
        self.moves[start].append((characters, end))
        return end

    def closure(self, states: Iterable[int], final: int) -> tuple[int, ...]:
        """The states that can be reached without a character, as far as they tell anything: sorted."""
        found = set(states)
        waiting = list(found)
        while waiting:
            free = self.free[waiting.pop()]
            self.spend(1 + len(free))
            for target in free:
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        return tuple(sorted(state for state in found if state == final or self.moves[state]))

    def parts(self, sets: frozenset[int]) -> list[tuple[frozenset[int], list[tuple[int, int]]]]:
        """The characters of these sets, by which of them they are in."""
        known = self._parts.get(sets)
        if known is None:
            known = self._parts[sets] = self._divided(sets)
        return known

    def _divided(self, sets: frozenset[int]) -> list[tuple[frozenset[int], list[tuple[int, int]]]]:
        changes: list[tuple[int, bool, int]] = []
        for number in sets:
            self.spend(_EDGE * len(self._sets[number]))
            for low, high in self._sets[number]:
                changes += ((low, True, number), (high + 1, False, number))
        changes.sort()
        now: set[int] = set()
        found: dict[frozenset[int], list[tuple[int, int]]] = {}
        for (at, begins, number), (following, _, _) in itertools.pairwise(changes):
            if begins:
                now.add(number)
            else:
                now.discard(number)
            if now and following != at:
                self.spend(_MEMBER * len(now))
                found.setdefault(frozenset(now), []).append((at, following - 1))
        return list(found.items())


def spend(rules: Rules, units: int) -> None:
    """Notes that so much is about to be done. Raises: TooManyStates, where it is more than may be."""
    rules.work.left -= units
    if rules.work.left < 0:
        raise TooManyStates(f"{rules.where}: has too many beginnings of parts at once; make it smaller")


def build(node: Node, rules: Rules) -> Automaton:
    """The automaton of a node without recursion. Raises TooManyStates."""
    loose = _Loose(rules)
    start = loose.state()
    final = loose.add(node, start)
    first = loose.closure((start,), final)
    numbers, order, edges = {first: 0}, [first], []
    for states in order:
        spend(rules, 2 * len(states))
        targets: dict[int, list[int]] = {}
        for state in states:
            for number, target in loose.moves[state]:
                targets.setdefault(number, []).append(target)
        out: list[tuple[int, int, int]] = []
        for sets, ranges in loose.parts(frozenset(targets)):
            spend(rules, sum(len(targets[number]) for number in sets) + _EDGE * len(ranges))
            reached = loose.closure((target for number in sets for target in targets[number]), final)
            if reached not in numbers:
                _check_states(len(order), rules)
                spend(rules, 2 * len(reached))
                numbers[reached] = len(order)
                order.append(reached)
            out += ((low, high, numbers[reached]) for low, high in ranges)
        edges.append(_joined(sorted(out)))
    return _trimmed(edges, [final in states for states in order])


def _joined(edges: Iterable[tuple[int, int, int]]) -> Edges:
    """The same edges, those that touch and lead to the same state as one."""
    found: list[tuple[int, int, int]] = []
    for low, high, target in edges:
        if found and found[-1][1] + 1 == low and found[-1][2] == target:
            low = found.pop()[0]
        found.append((low, high, target))
    return tuple(found)


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
    numbers, order = {(0, 0): 0}, [(0, 0)]
    edges: list[Edges] = []
    for a, b in order:
        out: list[tuple[int, int, int]] = []
        others = other.edges[b] if b != _LOST else ()
        spend(rules, _EDGE + len(one.edges[a]) + len(others))
        for low, high, target, target_b in _pieces(one.edges[a], others):
            if target_b == _LOST and not keep_lost:
                continue
            spend(rules, _EDGE)
            pair = (target, target_b)
            if pair not in numbers:
                _check_states(len(order), rules)
                numbers[pair] = len(order)
                order.append(pair)
            out.append((low, high, numbers[pair]))
        edges.append(_joined(out))
    accepts = [accept(one.accepts[a], b != _LOST and other.accepts[b]) for a, b in order]
    return _trimmed(edges, accepts)


_LOST = -1  # the other automaton can match no more


def _pieces(edges: Edges, others: Edges) -> Iterator[tuple[int, int, int, int]]:
    """The ranges in pieces by where the others lead too."""
    at = 0
    for low, high, target in edges:
        while at < len(others) and others[at][1] < low:
            at += 1
        beside = at
        while beside < len(others) and others[beside][0] <= high:
            start, end, other = others[beside]
            beside += 1
            if start > low:
                yield low, start - 1, target, _LOST
            yield max(low, start), min(high, end), target, other
            low = min(high, end) + 1
        if low <= high:
            yield low, high, target, _LOST


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
