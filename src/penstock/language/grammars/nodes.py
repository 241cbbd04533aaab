"""What every grammar is made of, whatever language it was written in: characters, literals, sequences, alternatives,
repetitions and references to rules. Schemas, patterns and users' grammars become these; the writers make them text.

Characters are Unicode scalar values (no surrogates), and a set of them is a sorted tuple of inclusive ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from penstock.core.errors import InvalidInput

Ranges = tuple[tuple[int, int], ...]

# Unicode scalar values: everything UTF-8 can carry. Source: Unicode 3.9, D76.
EVERY_CHARACTER: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))


@dataclass(frozen=True, slots=True)
class Literal:
    """This text."""

    text: str


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of these ranges."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequence:
    """All of these, one after the other; none is the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these; none is what nothing matches."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The item at least `least` and at most `most` times; None is without end."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Reference:
    """The rule of this name."""

    name: str


Node = Literal | Characters | Sequence | Choice | Repeat | Reference

EMPTY = Sequence(())
NOTHING = Choice(())


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a grammar may be, and what it is made from. All are refusals of what a caller sent, before the work."""

    source_bytes: int = 256 * 1024  # of the schema, pattern or grammar as it was sent
    depth: int = 64  # of schemas and groups inside each other
    rules: int = 6000
    nodes: int = 120_000  # made while compiling, which bounds the time
    text_bytes: int = 1024 * 1024  # of the compiled grammar
    repeats: int = 100_000  # the largest count, as in maxLength
    states: int = 3000  # of an automaton
    longest_string: int | None = None  # characters of a JSON string without maxLength of its own
    integer_digits: int = 18  # of integers without bounds of their own: what fits into 64 bits


@dataclass(slots=True)
class Work:
    """How much may still be done for one grammar: a unit is at most a tenth of a microsecond, and some five bytes that
    are kept. Refusals come before the work is done."""

    left: int = 12_000_000


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same characters as sorted ranges that neither overlap nor touch, without surrogates."""
    whole: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if low > high:
            continue
        if whole and low <= whole[-1][1] + 1:
            whole[-1] = (whole[-1][0], max(whole[-1][1], high))
        else:
            whole.append((low, high))
    return tuple(_without_surrogates(whole))


def _without_surrogates(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for low, high in ranges:
        if high < 0xD800 or low > 0xDFFF:
            yield (low, high)
            continue
        if low < 0xD800:
            yield (low, 0xD7FF)
        if high > 0xDFFF:
            yield (0xE000, high)


def complement(ranges: Ranges) -> Ranges:
    """Every other character."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    if start <= 0x10FFFF:
        found.append((start, 0x10FFFF))
    return normal(found)


def common(one: Ranges, other: Ranges) -> Ranges:
    """The characters in both."""
    found = []
    at = 0
    for low, high in one:
        while at < len(other) and other[at][1] < low:
            at += 1
        ahead = at
        while ahead < len(other) and other[ahead][0] <= high:
            found.append((max(low, other[ahead][0]), min(high, other[ahead][1])))
            ahead += 1
    return tuple(found)


def literal(text: str) -> Node:
    return Literal(text) if text else EMPTY


def characters(ranges: Iterable[tuple[int, int]]) -> Node:
    """One character of the ranges; a literal where there is only one."""
    whole = normal(ranges)
    if not whole:
        return NOTHING
    if len(whole) == 1 and whole[0][0] == whole[0][1]:
        return Literal(chr(whole[0][0]))
    return Characters(whole)


def sequence(*items: Node) -> Node:
    """The items one after the other, flat; nothing when one of them is nothing."""
    flat: list[Node] = []
    for item in items:
        if item == NOTHING:
            return NOTHING
        if isinstance(item, Sequence):
            flat.extend(item.items)
        else:
            flat.append(item)
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(*items: Node) -> Node:
    """One of the items, flat, each once."""
    flat: dict[Node, None] = {}
    for item in items:
        if isinstance(item, Choice):
            flat.update(dict.fromkeys(item.items))
        else:
            flat[item] = None
    return next(iter(flat)) if len(flat) == 1 else Choice(tuple(flat))


def repeat(item: Node, least: int, most: int | None) -> Node:
    """The item so many times. Nothing, not at all, is the empty text."""
    if item == NOTHING:
        return EMPTY if least == 0 else NOTHING
    if most == 0 or item == EMPTY:
        return EMPTY
    if most is not None and least > most:
        return NOTHING
    if (least, most) == (1, 1):
        return item
    return Repeat(item, least, most)


def optional(item: Node) -> Node:
    return repeat(item, 0, 1)


def children(node: Node) -> tuple[Node, ...]:
    """What a node is directly made of."""
    if isinstance(node, Sequence | Choice):
        return node.items
    return (node.item,) if isinstance(node, Repeat) else ()


def every(node: Node) -> Iterator[Node]:
    """The node and all within it, without following references."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(children(node)))


class Rules:
    """The rules of one grammar while it is made. Equal nodes share a rule; limits are kept while it grows.

    `where` begins every message, so that the caller finds what was too large. Names are letters, digits and dashes,
    which every dialect takes.
    """

    def __init__(self, limits: Limits, where: str, work: Work | None = None) -> None:
        self.limits, self.where = limits, where
        self.work = work or Work()  # of all automata that are made for these rules
        self.bodies: dict[str, Node] = {}
        self.lexical: set[str] = set()  # rules that are one token of the language, such as a JSON string
        self.split = False  # whether automata became rules: characters that are no tokens of their own
        self._by_body: dict[Node, Reference] = {}
        self._numbers: dict[str, int] = {}
        self._nodes = 0

    def copy(self) -> Rules:
        """The same rules, to be changed apart from these."""
        made = Rules(self.limits, self.where, self.work)
        made.bodies, made.lexical, made.split = dict(self.bodies), set(self.lexical), self.split
        made._by_body, made._numbers, made._nodes = dict(self._by_body), dict(self._numbers), self._nodes
        return made

    def reserve(self, hint: str) -> Reference:
        """A name whose body comes later, by `define`."""
        if len(self.bodies) >= self.limits.rules:
            raise InvalidInput(f"{self.where}: needs more than {self.limits.rules} grammar rules; make it smaller")
        number = self._numbers.get(hint, 0)
        self._numbers[hint] = number + 1
        reference = Reference(f"{hint}-{number}" if number else hint)
        self.bodies[reference.name] = NOTHING
        return reference

    def define(self, reference: Reference, body: Node) -> Reference:
        self.count(sum(1 for _ in every(body)))
        self.bodies[reference.name] = body
        return reference

    def add(self, hint: str, body: Node, *, lexical: bool = False) -> Node:
        """The rule with this body. What is short stays itself."""
        if isinstance(body, Reference) or body in (EMPTY, NOTHING):
            return body
        known = self._by_body.get(body)
        if known is None:
            known = self._by_body[body] = self.define(self.reserve(hint), body)
            if lexical:
                self.lexical.add(known.name)
        return known

    def count(self, nodes: int) -> None:
        """Notes that so many nodes were made. Raises InvalidInput beyond the limit."""
        self._nodes += nodes
        if self._nodes > self.limits.nodes:
            raise InvalidInput(f"{self.where}: the grammar has more than {self.limits.nodes} parts; make it smaller")

    def repeated(self, item: Node, least: int, most: int | None, hint: str = "many") -> Node:
        """`repeat`, with large counts made of blocks: llama.cpp refuses counts above 2,000 and makes a rule of each."""
        largest = max(least, most or 0)
        if largest > self.limits.repeats:
            raise InvalidInput(f"{self.where}: a count of {largest} is above {self.limits.repeats}")
        block = _BLOCK
        if largest <= 2 * block or item in (EMPTY, NOTHING):
            return repeat(item, least, most)
        one = self.add(f"{hint}-one", item) if not isinstance(item, Literal | Characters) else item
        whole = self.add(f"{hint}-block", repeat(one, block, block))
        blocks, rest = divmod(least, block)
        fixed = sequence(repeat(whole, blocks, blocks), repeat(one, rest, rest))
        if most is None:
            return sequence(fixed, repeat(one, 0, None))
        blocks, rest = divmod(most - least, block)
        if blocks == 0:
            return sequence(fixed, repeat(one, 0, rest))
        # n more at most: whole blocks then a part of one, or all blocks then at most the rest. The alternatives
        # have a common beginning but no text in two ways, so engines follow two paths at most.
        part = self.add(f"{hint}-part", repeat(one, 0, block - 1))
        ends = sequence(repeat(whole, blocks, blocks), repeat(one, 0, rest))
        return sequence(fixed, choice(sequence(repeat(whole, 0, blocks - 1), part), ends))


_BLOCK = 64  # two levels of it reach Limits.repeats with counts that every engine takes
