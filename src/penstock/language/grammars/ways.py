"""How many ways of reading one text a grammar has at the same moment, found before an engine has to follow them all.

llama.cpp keeps a stack for every way in which the text so far can be read, and tries every token of its vocabulary on
every stack, for all sequences at once: some hundred stacks are seconds for each token. So its stacks are followed here,
over the texts that make most of them, from the root and from every rule, as far as a budget goes.

Source: llama-grammar.cpp (`llama_grammar_advance_stack`, `llama_grammar_reject_candidates`, `handle_repetitions`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.language.grammars.nodes import Characters, Choice, Literal, Node, Ranges, Reference, Sequence, Work

# Measured with a vocabulary of 49,152 on one processor: 64 stacks that all take many characters are 0.1 s for a token
# (256 are 0.35 s, at worst 1.8 s); 1,000 that take one character each are 0.05 s.
_MOST_LOAD = 64.0
_NARROW = 1 / 96  # of a stack that takes few characters, against one that takes many
_MANY = 10  # characters
# Within one token, stacks that have come to be the same are followed apart: 8 ways for each character are nothing to
# be seen, 16 are 0.4 s for a token. Runs of one character are as long as this in vocabularies.
_MOST_PATHS = 1 << 16
_LONGEST_TOKEN = 16
_MOST_STEPS = 20_000  # stacks looked at, about 50 ms
_LEAST_STEPS = 200  # for each rule
_MOST_STEPS_IN_ALL = 100_000
_DEPTH = 6  # places on a stack from its top on, after which two are taken for alike
_MOST_PLACES = 400_000  # of all rules, written out
_MOST_CUTS = 500_000  # sets of characters at each place where one begins or ends: some tenths of a second, some 20 MiB

Stacks = frozenset[int]
_END = 0  # the empty stack: the text may end


@dataclass(frozen=True, slots=True)
class Found:
    """What was found; there may be more where the budget ended the search."""

    load: float
    paths: int

    @property
    def too_many(self) -> bool:
        return self.load > _MOST_LOAD or self.paths > _MOST_PATHS


def ways(bodies: Mapping[str, Node], work: Work | None = None) -> Found:
    """The most ways found for rules (the root is named ""). Stops at the first that are too many; what it took is
    charged to `work`."""
    table = Pushdown(bodies)
    load, paths = 0.0, 0
    share = max(_LEAST_STEPS, _MOST_STEPS // max(len(bodies), 1))
    try:
        for name in bodies:
            found = _Walk(table, _MOST_STEPS if not name else share).walk(name)
            load, paths = max(load, found.load), max(paths, found.paths)
            if found.too_many or table.steps > _MOST_STEPS_IN_ALL:
                break
    except _TooLarge:
        pass
    if work is not None:
        work.left -= len(bodies) + table.cost
    return Found(load, paths)


def too_many(bodies: Mapping[str, Node], names: Iterable[str]) -> list[str]:
    """Those of the names whose texts have too many ways by themselves."""
    table = Pushdown(bodies)
    found = []
    for name in names:
        try:
            if _Walk(table, _MOST_STEPS // 10).walk(name).too_many:
                found.append(name)
        except _TooLarge:
            break
        if table.steps > _MOST_STEPS_IN_ALL:
            break
    return found


class _TooLarge(Exception):
    """The rules have more places, or their characters more cuts, than are looked at."""


class Pushdown:
    """The rules as llama.cpp lays them out, made as they are reached: places in alternatives, and stacks of places.

    Stacks are numbered; 0 is the empty one, at which a text may end.
    """

    def __init__(self, bodies: Mapping[str, Node]) -> None:
        self._bodies = bodies
        self.steps = 0
        self._cuts = 0
        self._numbers: dict[str, int] = {}
        self._rules: list[Node | list[int]] = []  # a node until it is reached; then the first place of each alternative
        self._items: list[int] = []  # at each place: the number of a rule, or below 0 what `_characters` gave
        self._sets: list[Ranges] = []  # each once: as keys, long ones would be read whole at every look
        self._set_numbers: dict[Ranges, int] = {}
        self._by_node: dict[int, int] = {}  # by the address of a node, all of which live as long as the rules
        self._last: list[bool] = []  # whether it is the last of its alternative
        self._stacks: list[tuple[int, int]] = [(-1, -1)]  # place and the stack below; the first is the empty one
        self._known: dict[tuple[int, int], int] = {}
        self._settled: dict[int, tuple[int, ...]] = {}
        self._looks: dict[int, int] = {}
        self._look_numbers: dict[tuple[int, int], int] = {}
        self._splits: dict[frozenset[int], list[frozenset[int]]] = {}
        self._wide: list[bool] = []

    # --- rules ---

    def rule(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new(self._bodies[name])
        return self._numbers[name]

    def _new(self, body: Node) -> int:
        self._rules.append(body)
        return len(self._rules) - 1

    def _alternatives(self, rule: int) -> list[int]:
        """The first places; -1 of an empty alternative."""
        found = self._rules[rule]
        if not isinstance(found, list):
            items = found.items if isinstance(found, Choice) else (found,)
            found = self._rules[rule] = [self._place(self._laid_out(item, rule)) for item in items]
        return found

    def _place(self, items: list[int]) -> int:
        if not items:
            return -1
        first = len(self._items)
        if first + len(items) > _MOST_PLACES:
            raise _TooLarge
        self._items += items
        self._last += [False] * (len(items) - 1) + [True]
        return first

    def _laid_out(self, node: Node, rule: int) -> list[int]:
        if isinstance(node, Literal):
            return [self._characters(((ord(c), ord(c)),)) for c in node.text]
        if isinstance(node, Characters):
            known = self._by_node.get(id(node))
            if known is None:
                known = self._by_node[id(node)] = self._characters(node.ranges)
            return [known]
        if isinstance(node, Reference):
            return [self.rule(node.name)]
        if isinstance(node, Sequence):
            return [item for part in node.items for item in self._laid_out(part, rule)]
        if isinstance(node, Choice):
            return [self._new(node)]
        item = self._laid_out(node.item, rule)
        if not isinstance(node.item, Literal | Characters | Reference | Choice):
            item = [self._new(node.item)]
        if len(item) * max(node.least, node.most or 0) > _MOST_PLACES:
            raise _TooLarge
        after: list[int] = []
        if node.most is None:
            after = [self._again(item)]
        else:
            for _ in range(node.most - node.least):  # the last one first
                after = [self._optional([*item, *after])]
        return item * node.least + after

    def _characters(self, ranges: Ranges) -> int:
        """The number of a set of characters, below 0."""
        found = self._set_numbers.get(ranges)
        if found is None:
            self._sets.append(ranges)
            self._wide.append(sum(high - low + 1 for low, high in ranges) > _MANY)
            found = self._set_numbers[ranges] = -len(self._sets)
        return found

    def _optional(self, items: list[int]) -> int:
        rule = self._new(Choice(()))
        self._rules[rule] = [self._place(items), -1]
        return rule

    def _again(self, item: list[int]) -> int:
        rule = self._new(Choice(()))
        self._rules[rule] = [self._place([*item, rule]), -1]
        return rule

    # --- stacks ---

    def begun(self, rule: int) -> Stacks:
        return frozenset(s for first in self._alternatives(rule) for s in self.settled(self._pushed(first, _END)))

    def _pushed(self, place: int, below: int) -> int:
        if place < 0:
            return below
        key = (place, below)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self._stacks)
            self._stacks.append(key)
        return found

    def settled(self, stack: int) -> tuple[int, ...]:
        """The stacks, each with characters on its top, that this one stands for."""
        found = self._settled.get(stack)
        if found is not None:
            self.steps += 1
            return found
        ends: dict[int, None] = {}
        seen, waiting = set(), [stack]
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            self.steps += 1
            place, below = self._stacks[at]
            item = self._items[place] if at != _END else -1
            if item < 0:
                ends[at] = None
                continue
            rest = below if self._last[place] else self._pushed(place + 1, below)
            waiting.extend(self._pushed(first, rest) for first in self._alternatives(item))
        found = self._settled[stack] = tuple(ends)
        return found

    def after(self, stack: int) -> tuple[int, ...]:
        """The stacks after a character of what is on the top."""
        place, below = self._stacks[stack]
        return self.settled(below if self._last[place] else self._pushed(place + 1, below))

    def top(self, stack: int) -> int:
        """The number of the set of characters that may come."""
        return self._items[self._stacks[stack][0]]

    def look(self, stacks: Stacks) -> tuple[int, ...]:
        """What the stacks have in common with others on which the same can follow, for as long as it matters: how far
        things are inside each other makes no new ways."""
        return tuple(sorted(self._looks.get(stack) or self._looked(stack) for stack in stacks))

    def _looked(self, stack: int) -> int:
        places: list[int] = []
        at = stack
        while at != _END and len(places) < _DEPTH:
            place, at = self._stacks[at]
            places.append(place)
        found = -1
        for place in reversed(places):
            found = self._look_numbers.setdefault((place, found), len(self._look_numbers) + 1)
        self._looks[stack] = found
        return found

    def splits(self, tops: Iterable[int]) -> list[frozenset[int]]:
        """Which of these sets of characters have a character in common, as far as this differs."""
        key = frozenset(tops)
        found = self._splits.get(key)
        if found is None:
            found = self._splits[key] = self._split(key)
        return found

    def _split(self, tops: frozenset[int]) -> list[frozenset[int]]:
        changes: list[tuple[int, bool, int]] = []
        for top in tops:
            ranges = self._sets[-1 - top]
            self._charge(2 * len(ranges))
            for low, high in ranges:
                changes += ((low, True, top), (high + 1, False, top))
        changes.sort()
        now: set[int] = set()
        found: dict[frozenset[int], None] = {}
        for (at, begins, top), (following, _, _) in itertools.pairwise(changes):
            if begins:
                now.add(top)
            else:
                now.discard(top)
            if now and following != at:
                self._charge(len(now))
                found[frozenset(now)] = None
        return list(found)

    def _charge(self, cuts: int) -> None:
        self._cuts += cuts
        if self._cuts > _MOST_CUTS:
            raise _TooLarge

    @property
    def cost(self) -> int:
        """What was done, in units of `Work`."""
        return 25 * self.steps + 5 * self._cuts + 2 * len(self._items)

    def matches(self, text: str) -> bool:
        """Whether the rules allow the whole text."""
        stacks = self.begun(self.rule(""))
        for code in map(ord, text):
            taken = (stack for stack in stacks if stack != _END and self._takes(stack, code))
            stacks = frozenset(after for stack in taken for after in self.after(stack))
        return _END in stacks

    def _takes(self, stack: int, code: int) -> bool:
        return any(low <= code <= high for low, high in self._sets[-1 - self.top(stack)])

    def load(self, stacks: Stacks) -> float:
        found = 0.0
        for stack in stacks:
            if stack != _END:
                found += 1.0 if self._wide[-1 - self.top(stack)] else _NARROW
        return found


class _Walk:
    """Over sets of stacks from one rule on, those with the greatest load first."""

    def __init__(self, table: Pushdown, steps: int) -> None:
        self._table = table
        self._until = table.steps + steps

    def walk(self, name: str) -> Found:
        table = self._table
        first = table.begun(table.rule(name))
        load, paths = table.load(first), 0
        if load > _MOST_LOAD:  # before their characters are compared, which takes as many steps for each of them
            return Found(load, paths)
        known = {table.look(first)}
        waiting = [(-load, 0, first)]
        while waiting:
            if table.steps > self._until:
                return Found(load, paths)
            _, _, stacks = heapq.heappop(waiting)
            merges = False
            for matched in self._next(stacks):
                reached = [stack for before in matched for stack in table.after(before)]
                following = frozenset(reached)
                merges = merges or len(following) < len(reached)
                if (look := table.look(following)) not in known:
                    known.add(look)
                    its = table.load(following)
                    load = max(load, its)
                    if load > _MOST_LOAD:
                        return Found(load, paths)
                    heapq.heappush(waiting, (-its, len(known), following))
            if merges:
                paths = max(paths, self._paths(stacks))
            if paths > _MOST_PATHS:
                return Found(load, paths)
        return Found(load, paths)

    def _next(self, stacks: Stacks) -> list[list[int]]:
        """Those of the stacks that a character moves, for each kind of character."""
        by_top: dict[int, list[int]] = {}
        for stack in stacks:
            if stack != _END:
                by_top.setdefault(self._table.top(stack), []).append(stack)
        return [[stack for top in split for stack in by_top[top]] for split in self._table.splits(by_top)]

    def _paths(self, stacks: Stacks) -> int:
        """How many ways one token can be tried from here on, by the characters that make most of them."""
        now = dict.fromkeys(stacks, 1)
        most = 0
        for _ in range(_LONGEST_TOKEN):
            best: dict[int, int] = {}
            for matched in self._next(frozenset(now)):
                reached: dict[int, int] = {}
                for stack in matched:
                    for after in self._table.after(stack):
                        reached[after] = reached.get(after, 0) + now[stack]
                if sum(reached.values()) > sum(best.values()):
                    best = reached
            most = max(most, sum(best.values()))
            if not best or most > _MOST_PATHS:
                break
            now = best
        return most
