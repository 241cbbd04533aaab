"""What a model says, taken apart as it comes: what it thinks, what it shows, and which tools it calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Shown:
    """More of the visible text."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """More of a tool call: `name` in its first part only; pieces of `arguments` join to the text of a JSON object."""

    index: int
    name: str = ""
    arguments: str = ""


Part = Shown | Thought | Called


class Parser(Protocol):
    """Takes text apart. Its parts do not depend on how the text was cut, but for how they are cut themselves."""

    def feed(self, text: str) -> list[Part]:
        """What is certain now that this text has come."""
        ...

    def finish(self) -> list[Part]:
        """What was held back, now that no more comes."""
        ...


class OutputParser:
    """First the reasoning is taken off, then calls are looked for in what is visible. None skips a step."""

    def __init__(self, reasoning: Parser | None = None, tools: Parser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self.calls = 0  # tool calls so far

    def feed(self, text: str) -> list[Part]:
        """Parts of the next piece of output. Neighbours of one kind are joined; empty ones are left out."""
        return self._joined(self._through(self._reasoning.feed(text) if self._reasoning is not None else [Shown(text)]))

    def finish(self) -> list[Part]:
        """What was held back."""
        left = self._through(self._reasoning.finish()) if self._reasoning is not None else []
        if self._tools is not None:
            left += self._tools.finish()
        return self._joined(left)

    def _through(self, parts: Iterable[Part]) -> list[Part]:
        if self._tools is None:
            return list(parts)
        found: list[Part] = []
        for part in parts:
            found += self._tools.feed(part.text) if isinstance(part, Shown) else [part]
        return found

    def _joined(self, parts: list[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            last = found[-1] if found else None
            if isinstance(part, Called):
                self.calls = max(self.calls, part.index + 1)
                if isinstance(last, Called) and last.index == part.index:
                    found[-1] = Called(part.index, last.name, last.arguments + part.arguments)
                    continue
            elif not part.text:
                continue
            elif isinstance(part, Shown) and isinstance(last, Shown):
                found[-1] = Shown(last.text + part.text)
                continue
            elif isinstance(part, Thought) and isinstance(last, Thought):
                found[-1] = Thought(last.text + part.text)
                continue
            found.append(part)
        return found


def held_length(text: str, marks: Iterable[str]) -> int:
    """How many letters at the end of `text` could be the beginning of one of `marks`."""
    best = 0
    for mark in marks:
        at = text.find(mark[0], max(0, len(text) - len(mark) + 1))
        while at >= 0:
            if mark.startswith(text[at:]):
                best = max(best, len(text) - at)
                break
            at = text.find(mark[0], at + 1)
    return best
