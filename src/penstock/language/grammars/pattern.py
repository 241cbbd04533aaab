"""Regular expressions as nodes: the common part of Python's, ECMA 262's and Rust's dialects, read by our own parser.

What no engine can promise is refused by name: look-around, back-references, word boundaries, flags, Unicode properties.
Lazy quantifiers are taken as their greedy twins: the same texts match. `.` is every character but a line feed; classes
are those of ECMA 262: `\\d` is 0-9, `\\w` is A-Z, a-z, 0-9 and `_`.
"""

from __future__ import annotations

from penstock.core.errors import InvalidInput
from penstock.language.grammars.nodes import (
    EMPTY,
    EVERY_CHARACTER,
    NOTHING,
    Characters,
    Choice,
    Literal,
    Node,
    Ranges,
    Repeat,
    Rules,
    Sequence,
    characters,
    choice,
    complement,
    literal,
    normal,
    repeat,
    sequence,
)

DIGITS: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
# ECMA 262 WhiteSpace and LineTerminator.
SPACE: Ranges = normal(
    [(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
     (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)  # fmt: skip
_CLASSES = {"d": DIGITS, "w": WORD, "s": SPACE}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
NO_LINE_FEED = complement(((10, 10),))


def read(pattern: str, rules: Rules, where: str, *, search: bool = False) -> Node:
    """The texts that the pattern matches as a whole; with `search` (JSON Schema's `pattern`), those it is found in.

    Anchors may stand at the beginnings and ends of alternatives. Raises InvalidInput that says what cannot be read.
    """
    if len(pattern.encode(errors="replace")) > _MOST_BYTES:
        raise InvalidInput(f"{where}: a pattern may have at most {_MOST_BYTES} bytes")
    parser = _Parser(pattern, rules, where)
    branches = parser.whole()
    anything = repeat(characters(EVERY_CHARACTER), 0, None)
    found = []
    for begins, node, ends in branches:
        before = EMPTY if begins or not search else anything
        after = EMPTY if ends or not search else anything
        found.append(sequence(before, node, after))
    return choice(*found)


_MOST_BYTES = 16 * 1024

Branch = tuple[bool, Node, bool]  # anchored at its beginning, what it matches, anchored at its end


class _Parser:
    def __init__(self, text: str, rules: Rules, where: str) -> None:
        self.text, self.rules, self.where, self.at, self.depth = text, rules, where, 0, 0

    def refuse(self, what: str) -> InvalidInput:
        return InvalidInput(f"{self.where}: {what} at character {self.at} of the pattern {self.text[:80]!r}")

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def whole(self) -> list[Branch]:
        branches = self.alternatives()
        if self.at < len(self.text):
            raise self.refuse("a `)` without its `(`")
        return branches

    def alternatives(self) -> list[Branch]:
        branches = [self.branch()]
        while self.peek() == "|":
            self.at += 1
            branches.append(self.branch())
        return branches

    def branch(self) -> Branch:
        begins = ends = False
        parts: list[Node] = []
        while (c := self.peek()) and c not in "|)":
            if ends:
                raise self.refuse("text after `$`, which nothing can match")
            if c == "^":
                if parts:
                    raise self.refuse("`^` after other text, which nothing can match")
                begins, self.at = True, self.at + 1
                continue
            if c == "$":
                ends, self.at = True, self.at + 1
                continue
            if c == "(":
                inner_begins, inner, inner_ends = self.anchored_group()
                if inner_begins and parts:
                    raise self.refuse("`^` after other text, which nothing can match")
                if (
                    (inner_begins or inner_ends)
                    and (self.peek() in "*+?" or self.counts(peek_only=True))
                    and self.peek()
                ):
                    raise self.refuse("a repeated group with anchors is not supported")
                begins, ends = begins or inner_begins, ends or inner_ends
                parts.append(self.quantified(inner))
                continue
            parts.append(self.quantified(self.atom()))
        self.rules.count(1 + len(parts))
        return begins, sequence(*parts), ends

    def anchored_group(self) -> Branch:
        """A group as one branch; its alternatives have all the same anchors."""
        branches = self.group()
        begins, ends = {b for b, _, _ in branches}, {e for _, _, e in branches}
        if len(begins) > 1 or len(ends) > 1:
            raise self.refuse("a group in which only some alternatives have anchors is not supported")
        return True in begins, choice(*(node for _, node, _ in branches)), True in ends

    def group(self) -> list[Branch]:
        self.depth += 1
        if self.depth > self.rules.limits.depth:
            raise self.refuse(f"groups more than {self.rules.limits.depth} deep")
        self.at += 1
        if self.peek() == "?":
            self.group_kind()
        branches = self.alternatives()
        if self.peek() != ")":
            raise self.refuse("a `(` without its `)`")
        self.at += 1
        self.depth -= 1
        return branches

    def group_kind(self) -> None:
        rest = self.text[self.at : self.at + 3]
        if rest.startswith("?:"):
            self.at += 2
        elif rest.startswith(("?=", "?!", "?<=", "?<!")):
            raise self.refuse("look-around is not supported")
        elif rest.startswith(("?P<", "?<")):
            end = self.text.find(">", self.at)
            if end < 0:
                raise self.refuse("a group's name without its `>`")
            self.at = end + 1
        elif rest.startswith("?P="):
            raise self.refuse("back-references are not supported")
        else:
            raise self.refuse(f"groups of the kind `({rest}` are not supported")

    def atom(self) -> Node:
        c = self.peek()
        if c in "*+?" or (c == "{" and self.counts(peek_only=True)):
            raise self.refuse(f"`{c}` without anything to repeat")
        self.at += 1
        if c == ".":
            return characters(NO_LINE_FEED)
        if c == "[":
            return characters(self.bracket())
        if c == "\\":
            return characters(self.escape(in_class=False))
        return literal(c)

    def quantified(self, item: Node) -> Node:
        c = self.peek()
        if c == "*":
            bounds: tuple[int, int | None] | None = (0, None)
        elif c == "+":
            bounds = (1, None)
        elif c == "?":
            bounds = (0, 1)
        elif c == "{":
            bounds = self.counts()
            if bounds is None:
                return item
            self.at -= 1
        else:
            return item
        assert bounds is not None
        self.at += 1
        if self.peek() == "?":  # lazy: the same texts match
            self.at += 1
        if self.peek() in ("*", "+", "{") and self.peek() and (self.peek() != "{" or self.counts(peek_only=True)):
            raise self.refuse("a quantifier after a quantifier")
        least, most = bounds
        if most is not None and least > most:
            raise self.refuse(f"{{{least},{most}}} counts backwards")
        self.rules.count(max(least, most or 0) // 64 + 1)
        return self.rules.repeated(item, least, most)

    def counts(self, peek_only: bool = False) -> tuple[int, int | None] | None:
        """`{m}`, `{m,}` or `{m,n}` here; None when the `{` is only itself, as in ECMA 262."""
        end = self.text.find("}", self.at)
        inside = self.text[self.at + 1 : end] if end > 0 else ""
        first, comma, last = inside.partition(",")
        if not first.isascii() or not first.isdigit() or (last and not (last.isascii() and last.isdigit())):
            return None
        if len(first) > 7 or len(last) > 7:
            raise self.refuse(f"the count {{{inside[:24]}}} is too large")
        least = int(first)
        bounds = (least, (int(last) if last else None) if comma else least)
        if not peek_only:
            self.at = end + 1
        return bounds

    def escape(self, in_class: bool) -> Ranges:
        c = self.peek()
        self.at += 1
        if not c:
            raise self.refuse("a `\\` at the end")
        if c.lower() in _CLASSES:
            return _CLASSES[c] if c in _CLASSES else complement(_CLASSES[c.lower()])
        if c == "b" and in_class:
            return ((8, 8),)
        if c in _CONTROLS and not (c == "0" and self.peek().isdigit()):
            return ((ord(_CONTROLS[c]),) * 2,)
        if c == "x":
            return self.hexadecimal(2)
        if c == "u":
            if self.peek() == "{":
                end = self.text.find("}", self.at)
                self.at += 1
                found = self.hexadecimal(max(0, end - self.at))
                self.at = end + 1
                return found
            return self.surrogates(self.hexadecimal(4, any_half=True))
        if c == "U":
            return self.hexadecimal(8)
        if c in "AzZ":
            self.at -= 2
            raise self.refuse(f"`\\{c}` is not supported; write `^` or `$`")
        if c in "bB":
            raise self.refuse("word boundaries are not supported")
        if c.isdigit() or c == "k":
            raise self.refuse("back-references are not supported")
        if c in "pP":
            raise self.refuse("Unicode properties (`\\p`) are not supported; name the ranges")
        if c.isascii() and c.isalpha():
            raise self.refuse(f"`\\{c}` is not a known escape")
        return ((ord(c), ord(c)),)

    def surrogates(self, first: Ranges) -> Ranges:
        code = first[0][0]
        if not 0xD800 <= code <= 0xDFFF:
            return first
        if code <= 0xDBFF and self.text[self.at : self.at + 2] == "\\u":
            self.at += 2
            low = self.hexadecimal(4, any_half=True)[0][0]
            if 0xDC00 <= low <= 0xDFFF:
                whole = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                return ((whole, whole),)
        raise self.refuse("half of a surrogate pair")

    def hexadecimal(self, digits: int, any_half: bool = False) -> Ranges:
        text = self.text[self.at : self.at + digits]
        if len(text) != digits or not text or any(c not in "0123456789abcdefABCDEF" for c in text):
            raise self.refuse("an escape without its hexadecimal digits")
        self.at += digits
        code = int(text, 16)
        if code > 0x10FFFF or (0xD800 <= code <= 0xDFFF and not any_half):
            raise self.refuse("not a Unicode character")
        return ((code, code),)

    def bracket(self) -> Ranges:
        negated = self.peek() == "^"
        self.at += negated
        found: list[tuple[int, int]] = []
        first = True
        while (c := self.peek()) != "]" or first:
            if not c:
                raise self.refuse("a `[` without its `]`")
            if c == "]" and first:  # ECMA's empty class, Python's literal bracket
                raise self.refuse("a class that begins with `]`; write `\\]`")
            if c == "[" and self.text[self.at + 1 : self.at + 2] in (":", ".", "="):
                raise self.refuse("POSIX classes are not supported")
            first = False
            low = self.member()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    raise self.refuse("a range between classes")
                if low[0][0] > high[0][0]:
                    raise self.refuse("a range that counts backwards")
                found.append((low[0][0], high[0][0]))
            else:
                found.extend(low)
        self.at += 1
        ranges = normal(found)
        return complement(ranges) if negated else ranges

    def member(self) -> Ranges:
        c = self.peek()
        self.at += 1
        if not c:
            raise self.refuse("a `[` without its `]`")
        return self.escape(in_class=True) if c == "\\" else ((ord(c), ord(c)),)


def write(node: Node) -> str | None:
    """The node as a pattern of the whole text; None where it has references.

    In the part of the syntax that Python, Rust and ECMA 262 share.
    """
    if isinstance(node, Literal):
        return "".join(_escaped(c) for c in node.text)
    if isinstance(node, Characters):
        if node.ranges == NO_LINE_FEED:
            return "[^\\n]"
        body = "".join(
            _escaped(chr(low)) if low == high else f"{_escaped(chr(low))}-{_escaped(chr(high))}"
            for low, high in node.ranges
        )
        return f"[{body}]"
    if isinstance(node, Sequence):
        parts = [write(item) for item in node.items]
        grouped = zip(node.items, parts, strict=True)
        return None if None in parts else "".join(f"(?:{p})" if isinstance(i, Choice) else str(p) for i, p in grouped)
    if isinstance(node, Choice):
        parts = [write(item) for item in node.items]
        return None if None in parts or node == NOTHING else "|".join(map(str, parts))
    if isinstance(node, Repeat):
        inner = write(node.item)
        if inner is None:
            return None
        single = isinstance(node.item, Characters) or (isinstance(node.item, Literal) and len(node.item.text) == 1)
        most = "" if node.most is None else node.most
        counts = {"0,": "*", "1,": "+", "0,1": "?"}.get(f"{node.least},{most}", f"{{{node.least},{most}}}")
        return (inner if single else f"(?:{inner})") + counts
    return None


def _escaped(c: str) -> str:
    if c.isascii() and (c.isalnum() or c in " _\"'#%&,:;<=>@!`~/"):
        return c
    if c in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[c]
    if c.isascii() and c.isprintable():
        return "\\" + c
    if ord(c) < 0x20 or ord(c) == 0x7F:
        return f"\\x{ord(c):02x}"
    return c if c.isprintable() else (f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08x}")
