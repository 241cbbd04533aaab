"""Users' grammars in GBNF, or xgrammar's EBNF (the part they share), as nodes: read, checked, and written anew.

Written anew, because engines differ in what names and escapes they take, and die or hang on what is checked here: rules
that are missing, that begin with themselves, or that never end.
"""

from __future__ import annotations

import re

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.language.grammars.emptiness import may_be_empty, nullable_rules
from penstock.language.grammars.nodes import (
    EVERY_CHARACTER,
    Characters,
    Choice,
    Limits,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    characters,
    choice,
    complement,
    literal,
    normal,
    sequence,
)

_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_HEAD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:[ \t\r\n]|#[^\n]*)*::=")
_COUNT = re.compile(r"\{[ \t]*(\d{1,7})[ \t]*(,?)[ \t]*(\d{0,7})[ \t]*\}")
_ESCAPES = {"n": 10, "r": 13, "t": 9, "0": 0, "b": 8, "f": 12, "v": 11, "a": 7, "e": 27}
_DIGITS = {"x": 2, "u": 4, "U": 8}


def read(text: str, limits: Limits, where: str) -> tuple[Rules, Node]:
    """The rules of a grammar and its root. Raises InvalidInput with the line of what cannot be read."""
    if len(text.encode(errors="replace")) > limits.source_bytes:
        raise InvalidInput(f"{where}: more than {limits.source_bytes} bytes of grammar; make it smaller")
    rules = Rules(limits, where)
    reader = _Reader(text, rules)
    reader.grammar()
    if "root" not in reader.names:
        raise InvalidInput(f"{where}: has no rule `root`, which is where a grammar begins")
    check_left_recursion(rules)
    return rules, reader.names["root"]


class _Reader:
    def __init__(self, text: str, rules: Rules) -> None:
        self.text, self.rules, self.at, self.depth = text, rules, 0, 0
        self.names: dict[str, Reference] = {}

    def refuse(self, what: str) -> InvalidInput:
        line = self.text.count("\n", 0, self.at) + 1
        return InvalidInput(f"{self.rules.where}: line {line}: {what}")

    def skip(self) -> None:
        found = _SKIP.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def rule(self, name: str) -> Reference:
        if name not in self.names:
            plain = "".join(c if c.isalnum() else "-" for c in name).strip("-")
            self.names[name] = self.rules.reserve(plain if plain[:1].isalpha() else f"rule-{plain}")
        return self.names[name]

    def grammar(self) -> None:
        defined: set[str] = set()
        self.skip()
        while self.peek():
            head = _NAME.match(self.text, self.at)
            if head is None:
                raise self.refuse(f"a rule's name was expected, not {self.text[self.at : self.at + 20]!r}")
            name = head.group()
            self.at = head.end()
            self.skip()
            if not self.text.startswith("::=", self.at):
                raise self.refuse(f"`::=` was expected after {name[:80]!r}")
            if name in defined:
                raise self.refuse(f"the rule {name[:80]!r} is defined twice")
            defined.add(name)
            self.at += 3
            reference = self.rule(name)
            self.rules.define(reference, self.alternatives())
            self.skip()
        for name in self.names:
            if name not in defined:
                raise InvalidInput(
                    f"{self.rules.where}: the rule {name[:80]!r} is used and not defined{nearest(name, defined)}"
                )

    def alternatives(self) -> Node:
        ways = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            ways.append(self.sequence())
        return choice(*ways)

    def sequence(self) -> Node:
        parts: list[Node] = []
        while True:
            self.skip()
            c = self.peek()
            if not c or c in "|)" or _HEAD.match(self.text, self.at):
                self.rules.count(1 + len(parts))
                return sequence(*parts)
            parts.append(self.repeated(self.one()))

    def one(self) -> Node:
        c = self.peek()
        if c == '"':
            return self.quoted()
        if c == "[":
            return self.bracket()
        if c == ".":
            self.at += 1
            return Characters(EVERY_CHARACTER)
        if c == "(":
            self.depth += 1
            if self.depth > self.rules.limits.depth:
                raise self.refuse(f"groups more than {self.rules.limits.depth} deep")
            self.at += 1
            found = self.alternatives()
            if self.peek() != ")":
                raise self.refuse("a `(` without its `)`")
            self.at += 1
            self.depth -= 1
            return found
        name = _NAME.match(self.text, self.at)
        if name is None:
            raise self.refuse(f"{self.text[self.at : self.at + 20]!r} is not part of the grammars that are supported")
        self.at = name.end()
        if self.peek() == "(":
            raise self.refuse(f"macros such as {name.group()[:40]}(…) are not supported")
        return self.rule(name.group())

    def repeated(self, item: Node) -> Node:
        while True:
            c = self.peek()
            if c == "*":
                bounds: tuple[int, int | None] = (0, None)
            elif c == "+":
                bounds = (1, None)
            elif c == "?":
                bounds = (0, 1)
            elif c == "{":
                found = _COUNT.match(self.text, self.at)
                if found is None:
                    raise self.refuse("a `{` that is no count such as {2}, {2,} or {2,5}")
                least = int(found[1])
                bounds = (least, int(found[3]) if found[3] else None if found[2] else least)
                if bounds[1] is not None and least > bounds[1]:
                    raise self.refuse(f"{found.group()} counts backwards")
                self.at = found.end() - 1
            else:
                return item
            self.at += 1
            item = self.rules.repeated(item, *bounds)

    def quoted(self) -> Node:
        self.at += 1
        out = []
        while (c := self.peek()) != '"':
            if not c or c == "\n":
                raise self.refuse("a literal without its closing quote")
            out.append(chr(self.character()))
        self.at += 1
        return literal("".join(out))

    def bracket(self) -> Node:
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while self.peek() != "]":
            low = self.character()
            high = low
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.character()
            if high < low:
                raise self.refuse("a range that counts backwards")
            ranges.append((low, high))
        self.at += 1
        found = normal(ranges)
        return characters(complement(found) if negated else found)

    def character(self) -> int:
        c = self.peek()
        if not c or c == "\n":
            raise self.refuse("a literal or class that does not end on its line")
        self.at += 1
        if c != "\\":
            return ord(c)
        c = self.peek()
        self.at += 1
        if c in _DIGITS:
            digits = self.text[self.at : self.at + _DIGITS[c]]
            if len(digits) != _DIGITS[c] or re.fullmatch("[0-9a-fA-F]+", digits) is None:
                raise self.refuse(f"`\\{c}` needs {_DIGITS[c]} hexadecimal digits")
            self.at += len(digits)
            code = int(digits, 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self.refuse(f"`\\{c}{digits}` is no character")
            return code
        if c in _ESCAPES:
            return _ESCAPES[c]
        if not c or c.isalnum():
            raise self.refuse(f"`\\{c}` is not a known escape")
        return ord(c)


def check_left_recursion(rules: Rules) -> None:
    """Raises InvalidInput for a rule that begins with itself: engines would go around in it and read nothing."""
    nullable = nullable_rules(rules.bodies)
    first = {name: _beginnings(body, nullable) for name, body in rules.bodies.items()}
    done: set[str] = set()
    for start in first:
        if start in done:
            continue
        path: dict[str, None] = {}
        stack = [(start, iter(first[start]))]
        path[start] = None
        while stack:
            name, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                done.add(name)
                del path[name]
            elif following in path:
                raise InvalidInput(f"{rules.where}: the rule {following[:80]!r} begins with itself (left recursion); "
                                   "write it with `*` or `+` instead")  # fmt: skip
            elif following not in done:
                path[following] = None
                stack.append((following, iter(first[following])))


def _beginnings(node: Node, nullable: set[str]) -> list[str]:
    """The rules with which the node's text may begin."""
    if isinstance(node, Reference):
        return [node.name]
    if isinstance(node, Choice):
        return [name for item in node.items for name in _beginnings(item, nullable)]
    if isinstance(node, Repeat):
        # What may be empty and is repeated is followed by itself without anything read.
        return _beginnings(node.item, nullable)
    found: list[str] = []
    if isinstance(node, Sequence):
        for item in node.items:
            found += _beginnings(item, nullable)
            if not may_be_empty(item, nullable):
                break
    return found
