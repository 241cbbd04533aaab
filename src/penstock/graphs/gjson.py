"""Whether a path leads to something in a JSON document: the part of GJSON's paths that conditions use.

    a.b.0.c      keys and indexes; `\\` takes a character as it is, `*` and `?` are any characters, any one character
    list.#       its length; followed by more, the same of every element: list.#.name
    list.#(age>40).name      the first element for which the query is true; list.#(age>40)#.name every one
    [@this].#(kind=="dog")   the document as the one element of a list; [a,b] any list of paths
    a|b          as a.b, but after `#` of the whole list, not of every element

Queries compare with == = != < <= > >= % !% (`%` is like a pattern with * and ?); without a comparison they ask whether
there is something. `~true`, `~false`, `~null` and `~*` compare with what counts as that. Modifiers other than @this,
literals (`!`) and multipath objects (`{`) are refused when a graph is read.

Source: https://github.com/tidwall/gjson/blob/master/SYNTAX.md and the functions `queryMatches` and `Get` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from penstock.core.errors import InvalidInput

_LONGEST: Final = 2000
_DEEPEST: Final = 32
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Text with `*`, between which are `segments`. One expression of it all would try every split of a client's text:
    the leftmost place of each segment is as good as any."""

    segments: tuple[re.Pattern[str], ...]
    last_length: int

    def matches(self, text: str) -> bool:
        """Whether it is the whole text."""
        first, *middle = self.segments
        if not middle:
            return first.fullmatch(text) is not None
        if (found := first.match(text)) is None:
            return False
        last = middle.pop()
        for segment in middle:
            if (found := segment.search(text, found.end())) is None:
                return False
        end = len(text) - self.last_length
        return end >= found.end() and last.fullmatch(text, end) is not None


def _pattern(characters: Sequence[str]) -> _Pattern:
    """Of expressions for one character each, and `*` between them."""
    segments: list[list[str]] = [[]]
    for each in characters:
        if each == "*":
            segments.append([])
        else:
            segments[-1].append(each)
    return _Pattern(tuple(re.compile("".join(each), re.DOTALL) for each in segments), len(segments[-1]))


def _character(text: str) -> str:
    return {"*": "*", "?": "."}.get(text) or re.escape(text)


@dataclass(frozen=True, slots=True)
class _Part:
    """One component. `piped`: it applies to the whole list that came out before it."""

    kind: str  # key, count, query, list, this
    key: str = ""
    pattern: _Pattern | None = None
    query: _Query | None = None
    every: bool = False
    paths: tuple[tuple[_Part, ...], ...] = ()
    piped: bool = False


@dataclass(frozen=True, slots=True)
class _Query:
    path: tuple[_Part, ...]
    comparison: str
    value: str
    pattern: _Pattern | None


@dataclass(frozen=True, slots=True)
class Path:
    """A path, read. `text` is what was written."""

    text: str
    parts: tuple[_Part, ...]

    def exists(self, document: object) -> bool:
        """Whether there is something at the path in a parsed JSON document; `null` is something."""
        return _get(document, self.parts) is not _MISSING

    def get(self, document: object, default: object = None) -> object:
        """What is there, or `default`."""
        found = _get(document, self.parts)
        return default if found is _MISSING else found


def read(text: str) -> Path:
    """The path that `text` says. Raises: InvalidInput."""
    if len(text) > _LONGEST:
        raise InvalidInput(f"a condition has at most {_LONGEST} characters, not {len(text)}")
    return Path(text, _path(text, text, 0))


def _path(text: str, whole: str, depth: int) -> tuple[_Part, ...]:
    if depth > _DEEPEST:
        raise InvalidInput(f"the condition {whole[:80]!r} is nested more than {_DEEPEST} deep")
    parts: list[_Part] = []
    at, piped = 0, False
    while at < len(text):
        part, at = _part(text, at, whole, depth, piped)
        parts.append(part)
        if at < len(text):
            if text[at] not in ".|":
                raise InvalidInput(f"cannot read the condition {whole!r} from {text[at : at + 20]!r} on")
            piped = text[at] == "|"
            at += 1
            if at == len(text):
                raise InvalidInput(f"the condition {whole!r} ends in {text[-1]!r}")
    if not parts:
        raise InvalidInput("a condition is empty; write a path such as predictions.0")
    return tuple(parts)


def _part(text: str, at: int, whole: str, depth: int, piped: bool) -> tuple[_Part, int]:
    character = text[at]
    if character == "#" and text[at + 1 : at + 2] in ("(", "["):
        end = _closing(text, at + 1, whole)
        every = text[end + 1 : end + 2] == "#"
        query = _query(text[at + 2 : end], whole, depth)
        return _Part("query", query=query, every=every, piped=piped), end + (2 if every else 1)
    if character == "[":
        end = _closing(text, at, whole)
        paths = tuple(_path(each.strip(), whole, depth + 1) for each in _commas(text[at + 1 : end]))
        return _Part("list", paths=paths, piped=piped), end + 1
    if character in "{!" or (character == "@" and not re.match(r"@this(?![\w:])", text[at:])):
        raise InvalidInput(
            f"the condition {whole!r} uses {text[at : at + 12]!r}, which has no meaning here; "
            "keys, indexes, #, #(…), [paths] and @this have"
        )
    key, characters, wild, end = "", list[str](), False, at
    while end < len(text) and text[end] not in ".|":
        each = text[end]
        if each == "\\" and end + 1 < len(text):
            end += 1
            key += text[end]
            characters.append(re.escape(text[end]))
        else:
            wild = wild or each in "*?"
            key += each
            characters.append(_character(each))
        end += 1
    if key == "#":
        return _Part("count", piped=piped), end
    if key == "@this":
        return _Part("this", piped=piped), end
    return _Part("key", key, _pattern(characters) if wild else None, piped=piped), end


def _closing(text: str, at: int, whole: str) -> int:
    """Where what opens at `at` closes; quotes hide brackets."""
    depth, quoted = 0, False
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        elif character == '"':
            quoted = not quoted
        elif not quoted and character in "([":
            depth += 1
        elif not quoted and character in ")]":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise InvalidInput(f"the condition {whole!r} opens a bracket or a quote that it never closes")


def _commas(text: str) -> list[str]:
    parts, depth, quoted, start = [], 0, False, 0
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "([":
            depth += 1
        elif not quoted and character in ")]":
            depth -= 1
        elif not quoted and character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


_OPERATORS: Final = ("==", "!=", "<=", ">=", "!%", "=", "<", ">", "%")


def _query(text: str, whole: str, depth: int) -> _Query:
    at, depth_here, quoted = 0, 0, False
    comparison = ""
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        elif character == '"':
            quoted = not quoted
        elif not quoted and character in "([":
            depth_here += 1
        elif not quoted and character in ")]":
            depth_here -= 1
        elif not quoted and not depth_here:
            comparison = next((each for each in _OPERATORS if text.startswith(each, at)), "")
            if comparison:
                break
        at += 1
    path = text[:at].strip()
    value = text[at + len(comparison) :].strip()
    if comparison and not value:
        raise InvalidInput(f"the condition {whole!r} compares with nothing in #({text})")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if not comparison and not path:
        raise InvalidInput(f"the condition {whole!r} has an empty query #()")
    pattern = _pattern([*map(_character, value)]) if comparison in ("%", "!%") else None
    read_path = _path(path, whole, depth + 1) if path else ()
    return _Query(read_path, "=" if comparison == "==" else comparison, value, pattern)


def _get(value: object, parts: tuple[_Part, ...]) -> object:
    for index, part in enumerate(parts):
        rest = parts[index + 1 :]
        each = bool(rest) and not rest[0].piped  # what follows is asked of every element
        if part.kind == "this":
            continue
        if part.kind == "list":
            value = [found for path in part.paths if (found := _get(value, path)) is not _MISSING]
            continue
        if part.kind == "key":
            value = _key(value, part)
        elif not isinstance(value, list):
            return _MISSING
        elif part.kind == "count":
            if not each:
                value = value if rest else len(value)
                continue
            return _of_every(value, rest)
        else:
            assert part.query is not None
            if part.every:
                value = [element for element in value if _matches(element, part.query)]
                if each:
                    return _of_every(value, rest)
                continue
            query = part.query
            value = next((element for element in value if _matches(element, query)), _MISSING)
        if value is _MISSING:
            return _MISSING
    return value


def _of_every(values: list[object], parts: tuple[_Part, ...]) -> object:
    """The parts up to the next pipe of every element that has them; what is behind it of their list."""
    end = next((index for index, part in enumerate(parts) if part.piped), len(parts))
    found = [one for value in values if (one := _get(value, parts[:end])) is not _MISSING]
    return _get(found, parts[end:]) if end < len(parts) else found


def _key(value: object, part: _Part) -> object:
    if isinstance(value, Mapping):
        if part.pattern is None:
            return value.get(part.key, _MISSING)
        return next((each for key, each in value.items() if part.pattern.matches(key)), _MISSING)
    if isinstance(value, list) and part.key.isdecimal() and len(part.key) < 12 and int(part.key) < len(value):
        return value[int(part.key)]
    return _MISSING


def _matches(element: object, query: _Query) -> bool:
    value = _get(element, query.path) if query.path else element
    wanted = query.value
    if wanted.startswith("~") and query.comparison:
        kinds: Mapping[str, Callable[[object], bool]] = {
            "~*": lambda it: it is not _MISSING,
            "~null": lambda it: it is _MISSING or it is None,
            "~true": lambda it: it is not _MISSING and _true(it),
            "~false": lambda it: it is _MISSING or not _true(it),
        }
        if wanted not in kinds:
            return False
        value, wanted = kinds[wanted](value), "true"
    if value is _MISSING:
        return False
    if not query.comparison:
        return True
    if isinstance(value, bool):
        return _compare_bool(value, query.comparison, wanted)
    if isinstance(value, str):
        if query.pattern is not None:
            return query.pattern.matches(value) == (query.comparison == "%")
        return _compare(value, query.comparison, wanted)
    if isinstance(value, (int, float)):
        return _compare(float(value), query.comparison, _number(wanted))
    return False


def _true(value: object) -> bool:
    if isinstance(value, str):
        return value.lower() in ("1", "t", "true")
    return value is not None and value is not False and value != 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # as Go's ParseFloat, whose error GJSON does not look at


def _compare(one: float | str, comparison: str, other: float | str) -> bool:
    if comparison == "=":
        return one == other
    if comparison == "!=":
        return one != other
    if comparison == "<":
        return one < other  # type: ignore[operator]  # both are text or both are numbers
    if comparison == "<=":
        return one <= other  # type: ignore[operator]  # as above
    if comparison == ">":
        return one > other  # type: ignore[operator]  # as above
    return comparison == ">=" and one >= other  # type: ignore[operator]  # as above


def _compare_bool(value: bool, comparison: str, wanted: str) -> bool:
    own, opposite = ("true", "false") if value else ("false", "true")
    if comparison == "=":
        return wanted == own
    if comparison == "!=":
        return wanted != own
    if comparison == (">" if value else "<"):
        return wanted == opposite
    return comparison == (">=" if value else "<=")
