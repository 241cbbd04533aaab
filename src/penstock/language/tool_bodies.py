"""What stands inside one tool call, after its mark: a JSON object, a name and an object, Python's calls, or XML."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from penstock.core.language import Tool

# A call's beginning is short: a name has at most 64 letters in OpenAI's API. Objects whose arguments come first, or
# that hold them as a text, are awaited whole, up to this size; so are calls as Python writes them.
_MOST_AWAITED = 16_384
_LONGEST_HEAD = 400

_STRING = r'"(?:[^"\\]|\\.)*"'
# {"name": "f", "arguments": {   with "type" and "id" before or after the name, in any spacing.
_OTHERS = rf'(?:"(?:type|id)"\s*:\s*{_STRING}\s*,\s*)*'
_OBJECT_HEAD = re.compile(
    rf'\s*\[?\s*\{{\s*{_OTHERS}"name"\s*:\s*(?P<name>{_STRING})\s*,\s*{_OTHERS}'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_FIRST_KEY = re.compile(rf"\{{\s*(?P<key>{_STRING})\s*:")
_KEYS = frozenset({"name", "type", "id", "function", "arguments", "parameters"})
_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')


class NotACall(Exception):
    """What looked like the beginning of a call is text."""


class Body(Protocol):
    """One call, or several that are written as one. Raises NotACall only while not `committed`."""

    committed: bool  # a name has been given
    rest: str | None  # what comes after the call, once it is over

    def feed(self, text: str, last: bool) -> list[tuple[str, str]]:
        """Names and pieces of arguments; a name begins another call. `last`: no more text comes."""
        ...


class JsonScanner:
    """Finds where a JSON value ends, in pieces. `depth` is how many braces and brackets are open."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.in_string = False
        self._escaped = False

    def end(self, text: str) -> int:
        """Where the value ends in this next piece, just after its last brace; -1 while it does not."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_STRING_END if self.in_string else _STRUCTURE).search(text, at)
            if found is None:
                return -1
            at = found.end()
            letter = found.group()
            if letter == '"':
                self.in_string = not self.in_string
            elif letter == "\\":
                self._escaped = True
            elif letter in "{[":
                self.depth += 1
            else:
                self.depth -= 1
                if self.depth <= 0:
                    return at
        return -1


class JsonBody:
    """`{"name": …, "arguments": {…}}`, or what `heads` say and then `{…}`."""

    def __init__(
        self, heads: Sequence[re.Pattern[str]], closes: Sequence[str], separators: str, tools: Mapping[str, Tool]
    ) -> None:
        self._heads = heads
        self._closes = closes
        self._listed = "[" in separators or not heads
        self._tools = tools
        self._buffer = ""
        self._arguments = JsonScanner()
        self._wrapped = False  # the arguments are inside an object, whose end is awaited
        self._tail = False
        self.committed = False
        self.rest: str | None = None

    def feed(self, text: str, last: bool) -> list[tuple[str, str]]:
        self._buffer += text
        if self._tail:
            self._close(last)
            return []
        name = ""
        if not self.committed:
            head = self._head()
            if head is None:
                return self._awaited(last)
            name, start = head
            self._buffer = self._buffer[start:]
            self.committed = True
        end = self._arguments.end(self._buffer)
        piece = self._buffer if end < 0 else self._buffer[:end]
        self._buffer = "" if end < 0 else self._buffer[end:]
        if end >= 0:
            self._tail = True
            self._close(last)
        return [(name, piece)] if name or piece else []

    def _head(self) -> tuple[str, int] | None:
        """The name and where the arguments begin, once they do."""
        for head in self._heads:
            if (found := head.match(self._buffer)) is not None:
                return self._known(found.group("name")), found.end()
        if (found := _OBJECT_HEAD.match(self._buffer)) is not None:
            self._wrapped = True
            return self._known(_loaded(found.group("name"))), found.end()
        return None

    def _known(self, name: object) -> str:
        if not isinstance(name, str) or name not in self._tools:
            raise NotACall
        return name

    def _awaited(self, last: bool) -> list[tuple[str, str]]:
        """Without a head: an object that is whole may still be a call in another order."""
        bare = self._buffer.lstrip(" \t\r\n[" if self._listed else " \t\r\n")
        if not bare and not last and len(self._buffer) < _LONGEST_HEAD:
            return []
        if not bare.startswith("{"):
            if last or not self._heads or "{" in bare or len(bare) > _LONGEST_HEAD:
                raise NotACall
            return []
        key = _FIRST_KEY.match(bare)
        if key is not None and _loaded(key.group("key")) not in _KEYS:
            raise NotACall
        end = JsonScanner().end(bare)
        if end < 0:
            if last or len(bare) > _MOST_AWAITED:
                raise NotACall
            return []
        name, arguments = self._whole(bare[:end])
        self.committed = True
        self.rest = bare[end:]
        return [(name, arguments)]

    def _whole(self, text: str) -> tuple[str, str]:
        found = _loaded(text)
        if isinstance(found, dict) and isinstance(found.get("function"), dict):
            found = found["function"]
        if not isinstance(found, dict) or not found.keys() <= _KEYS:
            raise NotACall
        name = self._known(found.get("name", found.get("function")))
        arguments = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _loaded(arguments)
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise NotACall
        return name, json.dumps(arguments, ensure_ascii=False)

    def _close(self, last: bool) -> None:
        """After the arguments: to the end of the object around them, or to a closing mark where that was forgotten."""
        if not self._wrapped:
            self.rest = self._buffer
            return
        end = JsonScanner(1).end(self._buffer)
        marks = [at for mark in self._closes if (at := self._buffer.find(mark)) >= 0]
        if marks and (end < 0 or min(marks) < end):
            self.rest = self._buffer[min(marks) :]
        elif end >= 0:
            self.rest = self._buffer[end:]
        elif last or len(self._buffer) > _MOST_AWAITED:
            self.rest = self._buffer.lstrip(" \t\r\n,}]")


class PythonBody:
    """`[f(a=1, b="x"), g()]`, as Llama 3.2 and 4 and LFM2 write calls: read when whole, and never run."""

    _BEGINS = re.compile(r"\s*(?:\[\s*(?:[A-Za-z_][\w.]*\s*(?:\(.*)?)?)?\Z", re.DOTALL)
    _PIECES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"]|[\[({]|[\])}]""", re.DOTALL)

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self._buffer = ""
        self.committed = False
        self.rest: str | None = None

    def feed(self, text: str, last: bool) -> list[tuple[str, str]]:
        self._buffer += text
        if self._BEGINS.match(self._buffer) is None or len(self._buffer) > _MOST_AWAITED:
            raise NotACall
        end = self._end()
        if end < 0:
            if last:
                raise NotACall
            return []
        calls = self._calls(self._buffer[:end].strip())
        self.committed = True
        self.rest = self._buffer[end:]
        return calls

    def _end(self) -> int:
        depth = 0
        for found in self._PIECES.finditer(self._buffer):
            letter = found.group()
            if letter in ("'", '"'):
                return -1  # inside a string that goes on
            if letter in "[({":
                depth += 1
            elif letter in "])}":
                depth -= 1
                if depth <= 0:
                    return found.end()
        return -1

    def _calls(self, text: str) -> list[tuple[str, str]]:
        try:
            tree = ast.parse(text, mode="eval").body
            if not isinstance(tree, ast.List) or not tree.elts:
                raise NotACall
            return [self._call(entry) for entry in tree.elts]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise NotACall from None

    def _call(self, entry: ast.expr) -> tuple[str, str]:
        if not isinstance(entry, ast.Call) or entry.args:
            raise NotACall
        name = ast.unparse(entry.func) if isinstance(entry.func, ast.Name | ast.Attribute) else ""
        if name not in self._tools or any(keyword.arg is None for keyword in entry.keywords):
            raise NotACall
        arguments = {keyword.arg: _value(keyword.value) for keyword in entry.keywords}
        return name, json.dumps(arguments, ensure_ascii=False)


def _value(node: ast.expr) -> object:
    """The value of a literal; JSON's words (true, null) are taken as well as Python's."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        return {
            str(_value(key)): _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    found = ast.literal_eval(node)
    if found is not None and not isinstance(found, str | int | float | bool):
        raise NotACall
    return found


class XmlBody:
    """`<function=f><parameter=a>1</parameter></function>`, as Qwen3-Coder writes calls. A value is text if the tool's
    schema says so, else JSON where it can be read as such."""

    _HEAD = re.compile(r"\s*<function=(?P<name>[^<>\n]{1,128})>")
    _PARAMETER = re.compile(r"\s*<parameter=(?P<key>[^<>\n]{1,256})>\n?(?P<value>.*?)\n?</parameter>", re.DOTALL)
    _END = re.compile(r"\s*</function>")

    def __init__(self, opened: bool, tools: Mapping[str, Tool]) -> None:
        self._buffer = "<function=" if opened else ""
        self._tools = tools
        self._types: Mapping[str, object] = {}
        self._given = 0
        self.committed = False
        self.rest: str | None = None

    def feed(self, text: str, last: bool) -> list[tuple[str, str]]:
        self._buffer += text
        name = ""
        if not self.committed:
            head = self._HEAD.match(self._buffer)
            if head is None:
                bare = self._buffer.lstrip()
                whole = "<function=".startswith(bare) or (bare.startswith("<function=") and ">" not in bare)
                if last or not whole or len(bare) > _LONGEST_HEAD:
                    raise NotACall
                return []
            name = head.group("name").strip()
            if name not in self._tools:
                raise NotACall
            properties = self._tools[name].parameters.get("properties")
            self._types = properties if isinstance(properties, Mapping) else {}
            self._buffer = self._buffer[head.end() :]
            self.committed = True
        return [(name, pieces)] if (pieces := self._pieces()) or name else []

    def _pieces(self) -> str:
        pieces = ""
        # Values may be whole files: the pattern looks through them once, when they have ended.
        while "</parameter>" in self._buffer and (found := self._PARAMETER.match(self._buffer)) is not None:
            key = found.group("key").strip()
            value = json.dumps(self._typed(key, found.group("value")), ensure_ascii=False)
            pieces += f"{', ' if self._given else '{'}{json.dumps(key, ensure_ascii=False)}: {value}"
            self._given += 1
            self._buffer = self._buffer[found.end() :]
        if (end := self._END.match(self._buffer)) is not None:
            pieces += "}" if self._given else "{}"
            self.rest = self._buffer[end.end() :]
        return pieces

    def _typed(self, key: str, text: str) -> object:
        schema = self._types.get(key)
        if isinstance(schema, Mapping) and schema.get("type") == "string":
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotACall from None
