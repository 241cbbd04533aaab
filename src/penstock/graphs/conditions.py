"""Conditions on tensors: `max(score) >= 0.5`, `language == "de"`, `rows > 16`. Read once, asked for every request.

    CONDITION := OPERAND COMPARISON VALUE | NAME | not CONDITION | CONDITION and CONDITION | CONDITION or CONDITION
    OPERAND   := rows(NAME) | max(NAME) | min(NAME) | mean(NAME) | sum(NAME) | NAME
    COMPARISON := == != < <= > >=        VALUE := number | "text" | true | false

A bare NAME before a comparison means its one element; with several elements, any(NAME) or all(NAME) says which. A NAME
alone is true when there is such a value. `and` binds tighter than `or`; there are no parentheses.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.tensor import Array

Value = float | bool | str

Compare = Callable[[Any, Any], object]

_COMPARISONS: Final[Mapping[str, Compare]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
REDUCTIONS: Final = ("rows", "max", "min", "mean", "sum", "any", "all")
_NAME = r"[A-Za-z_][\w.:/-]*"
_TERM: Final = re.compile(
    rf"(?P<not>(?:not\s+)*)(?:(?P<how>{'|'.join(REDUCTIONS)})\s*\(\s*(?P<of>{_NAME})\s*\)|(?P<name>{_NAME}))"
    r"(?:\s*(?P<is>==|!=|<=|>=|<|>)\s*(?P<value>.+))?"
)
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison. Without `comparison`: whether there is such a value."""

    name: str
    reduction: str = ""
    comparison: str = ""
    value: Value = 0.0
    negated: bool = False

    def holds(self, values: Mapping[str, Array]) -> bool:
        """Raises: InvalidInput when the value cannot be compared so."""
        return self._holds(values) != self.negated

    def _holds(self, values: Mapping[str, Array]) -> bool:
        array = values.get(self.name)
        if not self.comparison:
            return array is not None
        if array is None:
            return False
        compare = _COMPARISONS[self.comparison]
        if self.reduction == "rows":
            return bool(compare(array.shape[0] if array.ndim else 1, self.value))
        if array.dtype.kind in "OSU":
            return self._of_text(array, compare)
        if isinstance(self.value, str):
            raise InvalidInput(f"the condition compares '{self.name}', which holds numbers, with text {self.value!r}")
        if not array.size:
            return False
        if self.reduction in ("max", "min", "mean", "sum"):
            return bool(compare(getattr(array, self.reduction)(), self.value))
        return self._elements(compare(array, self.value), array)

    def _of_text(self, array: Array, compare: Compare) -> bool:
        if not isinstance(self.value, str) or self.reduction in ("max", "min", "mean", "sum"):
            raise InvalidInput(f"the condition compares '{self.name}', which holds text, with {self.value!r}")
        texts = [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in array.ravel()]
        return self._elements(np.array([bool(compare(text, self.value)) for text in texts]), array)

    def _elements(self, found: object, array: Array) -> bool:
        each = np.asarray(found)
        if self.reduction == "all":
            return bool(each.all()) and each.size > 0
        if self.reduction != "any" and array.size != 1:
            raise InvalidInput(
                f"the condition compares '{self.name}', which has {array.size} elements; "
                f"write any({self.name}), all({self.name}), max({self.name}) or another of {', '.join(REDUCTIONS)}"
            )
        return bool(each.any())


@dataclass(frozen=True, slots=True)
class Condition:
    """Terms joined by `and`, and these by `or`. `text` is what was written."""

    text: str
    alternatives: tuple[tuple[Term, ...], ...]

    def holds(self, values: Mapping[str, Array]) -> bool:
        """Raises: InvalidInput when a value cannot be compared as it says."""
        return any(all(term.holds(values) for term in terms) for terms in self.alternatives)

    def names(self) -> frozenset[str]:
        """The values that it compares; whether others are there, it only asks."""
        return frozenset(term.name for terms in self.alternatives for term in terms if term.comparison)


def read(text: str) -> Condition:
    """The condition that `text` says. Raises: InvalidInput."""
    if len(text) > _LONGEST:
        raise InvalidInput(f"a condition has at most {_LONGEST} characters, not {len(text)}")
    alternatives = tuple(tuple(_term(part, text) for part in _split(each, "and")) for each in _split(text, "or"))
    return Condition(text.strip(), alternatives)


def _split(text: str, word: str) -> list[str]:
    """`text` at `word`, which does not count inside quotes."""
    parts, at, quote, start = [], 0, "", 0
    while at < len(text):
        character = text[at]
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif text.startswith(f" {word} ", at):
            parts.append(text[start:at])
            start = at = at + len(word) + 1
            continue
        at += 1
    return [*parts, text[start:]]


def _term(text: str, whole: str) -> Term:
    match = _TERM.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"cannot read the condition {whole!r}; write it like: max(score) >= 0.5 and rows(score) < 8")
    negated = len(match["not"].split()) % 2 == 1
    name, how = match["of"] or match["name"], match["how"] or ""
    if match["is"] is None:
        if how:
            raise InvalidInput(f"the condition {whole!r} compares {how}({name}) with nothing")
        return Term(name, negated=negated)
    return Term(name, how, match["is"], _value(match["value"].strip(), whole), negated)


def _value(text: str, whole: str) -> Value:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"the condition {whole!r} compares with {text!r}; write a number or quoted text") from None
