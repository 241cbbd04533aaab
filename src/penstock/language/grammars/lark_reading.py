"""Users' grammars in Lark's syntax, as nodes: rules, terminals, literals, patterns, `?`, `*`, `+`, `~ n..m` and `[…]`.

What has no meaning character by character is refused by name: `%ignore`, priorities, templates, and imports other
than those of `common` that are one pattern. A terminal is read where it stands, without the longest-match rule of
a separate lexer.
"""

from __future__ import annotations

import re

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.language.grammars import pattern
from penstock.language.grammars.gbnf_reading import check_left_recursion
from penstock.language.grammars.nodes import (
    Limits,
    Node,
    Reference,
    Rules,
    characters,
    choice,
    literal,
    optional,
    sequence,
)

# Source: lark/grammars/common.lark.
_COMMON = {
    "DIGIT": "[0-9]", "HEXDIGIT": "[0-9a-fA-F]", "INT": "[0-9]+", "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": "[0-9]+\\.[0-9]*|\\.[0-9]+", "FLOAT": "[0-9]+(?:\\.[0-9]*)?[eE][+-]?[0-9]+|[0-9]+\\.[0-9]*|\\.[0-9]+",
    "NUMBER": "[0-9]+(?:\\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\\.[0-9]+(?:[eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": "[+-]?(?:[0-9]+(?:\\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\\.[0-9]+(?:[eE][+-]?[0-9]+)?)",
    "ESCAPED_STRING": "\"(?:[^\"\\\\\\n]|\\\\.)*\"", "LCASE_LETTER": "[a-z]", "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]", "WORD": "[A-Za-z]+", "CNAME": "[_A-Za-z][_A-Za-z0-9]*", "WS_INLINE": "[ \\t]+",
    "WS": "[ \\t\\f\\r\\n]+", "CR": "\\r", "LF": "\\n", "NEWLINE": "(?:\\r?\\n)+",
}  # fmt: skip
_HEAD = re.compile(r"[ \t]*([?!]?)(_?[a-zA-Z][A-Za-z0-9_]*)[ \t]*(\{|\.-?\d+)?[ \t]*:", re.ASCII)
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)|(?P<string>"(?:[^"\\\n]|\\.)*"i?)|(?P<regex>/(?!/)(?:[^/\\\n]|\\.)+/[a-z]*)"""
    r"""|(?P<range>\.\.)|(?P<name>_?[A-Za-z][A-Za-z0-9_]*)|(?P<number>\d{1,7})|(?P<mark>->|[()\[\]|?*+~])""",
    re.ASCII,
)


def read(text: str, limits: Limits, where: str) -> tuple[Rules, Node]:
    """The rules of a grammar and its `start`. Raises InvalidInput with the line of what cannot be read or kept."""
    if len(text.encode(errors="replace")) > limits.source_bytes:
        raise InvalidInput(f"{where}: more than {limits.source_bytes} bytes of grammar; make it smaller")
    rules = Rules(limits, where)
    reader = _Reader(rules)
    for number, definition in _definitions(text):
        reader.definition(definition, number)
    reader.finish()
    return rules, reader.names["start"]


def _definitions(text: str) -> list[tuple[int, str]]:
    """The definitions and statements, with the number of their first line; lines that go on are joined."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = _without_comment(line).rstrip()
        if not line.strip():
            continue
        if (found and line.lstrip()[0] == "|") or (
            found and line[0] in " \t" and not _HEAD.match(line) and not line.lstrip().startswith("%")
        ):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            found.append((number, line.strip()))
    return found


def _without_comment(line: str) -> str:
    at = 0
    while at < len(line):
        if line.startswith("//", at) or (line[at] == "#" and not line[:at].strip()):
            return line[:at]
        token = _TOKEN.match(line, at)
        at = token.end() if token else at + 1
    return line


class _Reader:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.names: dict[str, Reference] = {}
        self.defined: set[str] = set()
        self.line, self.depth = 1, 0
        self.tokens: list[tuple[str, str]] = []
        self.at = 0

    def refuse(self, what: str) -> InvalidInput:
        return InvalidInput(f"{self.rules.where}: line {self.line}: {what}")

    def rule(self, name: str) -> Reference:
        if name not in self.names:
            plain = name.strip("_").replace("_", "-")
            self.names[name] = self.rules.reserve(f"t-{plain}" if name.strip("_").isupper() else plain)
        return self.names[name]

    def definition(self, text: str, line: int) -> None:
        self.line = line
        if text.startswith("%"):
            self.statement(text)
            return
        head = _HEAD.match(text)
        if head is None:
            raise self.refuse(f"`name: …` was expected, not {text[:60]!r}")
        if head[3]:
            raise self.refuse("templates and priorities are not supported")
        if head[2] in self.defined:
            raise self.refuse(f"{head[2][:80]!r} is defined twice")
        self.defined.add(head[2])
        self.tokens, self.at = self.split(text[head.end() :]), 0
        body = self.alternatives()
        if self.at < len(self.tokens):
            raise self.refuse(f"{self.tokens[self.at][1][:40]!r} was not expected here")
        self.rules.define(self.rule(head[2]), body)

    def statement(self, text: str) -> None:
        found = re.fullmatch(r"%import\s+common\s*\.\s*([A-Z_]+)(?:\s*->\s*([A-Za-z_]\w*))?", text)
        if found is None:
            several = re.fullmatch(r"%import\s+common\s*\(([A-Z_,\s]+)\)", text)
            if several is None:
                raise self.refuse(f"`{text.split()[0][:40]}` is not supported, except `%import common.NAME`")
            names = [(name.strip(), name.strip()) for name in several[1].split(",")]
        else:
            names = [(found[1], found[2] or found[1])]
        for name, known_as in names:
            if name not in _COMMON:
                raise self.refuse(f"`common.{name[:40]}` is not supported; these are: {', '.join(sorted(_COMMON))}")
            self.defined.add(known_as)
            self.rules.define(self.rule(known_as), pattern.read(_COMMON[name], self.rules, self.rules.where))

    def split(self, text: str) -> list[tuple[str, str]]:
        tokens, at = [], 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self.refuse(f"{text[at : at + 20]!r} cannot be read")
            at = found.end()
            if found.lastgroup != "space":
                tokens.append((str(found.lastgroup), found.group()))
        return tokens

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def alternatives(self) -> Node:
        ways = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            ways.append(self.sequence())
        return choice(*ways)

    def sequence(self) -> Node:
        parts: list[Node] = []
        while (text := self.peek()) and text not in ("|", ")", "]"):
            if text == "->":  # an alias: a name for the tree that nobody builds
                self.at += 2
                continue
            parts.append(self.repeated(self.one()))
        self.rules.count(1 + len(parts))
        return sequence(*parts)

    def one(self) -> Node:
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "string":
            return self.string(text)
        if kind == "regex":
            if not text.endswith("/"):
                raise self.refuse(f"flags of patterns are not supported: {text[-8:]!r}")
            return pattern.read(text[1:-1].replace("\\/", "/"), self.rules, f"{self.rules.where}: line {self.line}")
        if kind == "name":
            return self.rule(text)
        if text in ("(", "["):
            self.depth += 1
            if self.depth > self.rules.limits.depth:
                raise self.refuse(f"groups more than {self.rules.limits.depth} deep")
            inside = self.alternatives()
            if self.peek() != {"(": ")", "[": "]"}[text]:
                raise self.refuse(f"a `{text}` that is not closed")
            self.at += 1
            self.depth -= 1
            return optional(inside) if text == "[" else inside
        raise self.refuse(f"{text[:40]!r} was not expected here")

    def string(self, text: str) -> Node:
        value = self.value(text)
        if not text.endswith("i"):
            if self.peek() != "..":
                return literal(value)
            self.at += 1
            kind, last = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
            self.at += 1
            end = self.value(last) if kind == "string" else ""
            if len(value) != 1 or len(end) != 1 or end < value:
                raise self.refuse("a range is between two characters, the lower one first")
            return characters([(ord(value), ord(end))])
        return sequence(*(characters([(ord(c.lower()), ord(c.lower())), (ord(c.upper()), ord(c.upper()))])
                          if len(c.lower()) == len(c.upper()) == 1 else literal(c) for c in value))  # fmt: skip

    def value(self, text: str) -> str:
        import json

        body = re.sub(r"\\(x[0-9a-fA-F]{2}|.)", lambda found: _json_escape(found[1]), text[1 : text.rindex('"')])
        try:
            value = json.loads(f'"{body}"', strict=False)
            str(value).encode()
        except ValueError:
            raise self.refuse(f"the literal {text[:40]} cannot be read") from None
        return str(value)

    def repeated(self, item: Node) -> Node:
        text = self.peek()
        bounds: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
        if text in bounds:
            self.at += 1
            return self.rules.repeated(item, *bounds[text])
        if text != "~":
            return item
        self.at += 1
        least = self.number()
        most = least
        if self.peek() == "..":
            self.at += 1
            most = self.number()
        if least > most:
            raise self.refuse(f"~ {least}..{most} counts backwards")
        return self.rules.repeated(item, least, most)

    def number(self) -> int:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind != "number":
            raise self.refuse("a number was expected after `~`")
        self.at += 1
        return int(text)

    def finish(self) -> None:
        if "start" not in self.defined:
            raise InvalidInput(f"{self.rules.where}: has no rule `start`, which is where a Lark grammar begins")
        for name in self.names:
            if name not in self.defined:
                hint = nearest(name, self.defined)
                raise InvalidInput(f"{self.rules.where}: {name[:80]!r} is used and not defined{hint}")
        check_left_recursion(self.rules)


def _json_escape(escaped: str) -> str:
    if escaped[0] == "x":
        return f"\\u00{escaped[1:]}"
    return f"\\{escaped}" if escaped in '"\\/bfnrtu' else escaped
