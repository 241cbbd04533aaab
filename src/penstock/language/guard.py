"""Keeps the text of strangers from becoming control tokens.

A chat template writes control tokens ("<|im_end|>") between texts that users wrote. If a user's text spells one, it
must not end the user's turn. So before rendering, every control text inside what users wrote is broken up with a mark,
a noncharacter that appears nowhere else; after rendering, what is unbroken is the template's own, and the rest is
encoded as text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from penstock.core.errors import InvalidInput
from penstock.language.tokenizer import Tokenizer

# Unicode's noncharacters for internal use: in no text that was meant to be exchanged.
_MARKS = "".join(chr(number) for number in range(0xFDD0, 0xFDF0))


class Guard:
    """Knows a model's control texts; made once for a model. Without any it changes nothing."""

    def __init__(self, specials: Iterable[str]) -> None:
        longest_first = sorted(set(specials), key=lambda text: (-len(text), text))
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        # Beginnings of one letter would mark every text that ends in "<". A control text that a template completes
        # after one letter of a user's is not to be feared: templates write none without its first letter.
        self.beginnings = tuple({text[:length] for text in longest_first for length in range(2, len(text))})

    def marking(self, texts: Iterable[str]) -> Marking:
        """Marks for one prompt, in none of its `texts`. Raises: InvalidInput when they hold all noncharacters."""
        joined = "".join(texts)
        free = [mark for mark in _MARKS if mark not in joined]
        if len(free) < 2:
            raise InvalidInput("the messages hold Unicode noncharacters (U+FDD0 to U+FDEF), which are no text")
        return Marking(self, free[0], free[1])


class Marking:
    """The guarding of one prompt. `cut` is a second mark, for whoever renders."""

    def __init__(self, guard: Guard, mark: str, cut: str) -> None:
        self._guard = guard
        self._mark = mark
        self.cut = cut
        self._used = False

    def text(self, text: str) -> str:
        """The text with every control text, and what could become one with what follows, broken up."""
        pattern = self._guard.pattern
        if pattern is None or not text:
            return text
        found = pattern.sub(self._broken, text)
        if found.endswith(self._guard.beginnings):
            found += self._mark
        self._used = self._used or found != text
        return found

    def value(self, value: object) -> object:
        """The same in every text of a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self.value(item) for item in value]
        return value

    def plain(self, rendered: str) -> str:
        """The prompt as people see it: without marks."""
        return rendered.replace(self._mark, "") if self._used else rendered

    def encode(self, tokenizer: Tokenizer, rendered: str) -> list[int]:
        """The ids of a rendered prompt: control texts of the template are control tokens, those of users are text."""
        pattern = self._guard.pattern
        if not self._used or pattern is None:
            return tokenizer.encode(rendered, special=False)
        ids: list[int] = []
        at = 0
        for match in pattern.finditer(rendered):
            ids += self._text_ids(tokenizer, rendered[at : match.start()])
            ids += tokenizer.encode(match.group(), special=False)
            at = match.end()
        return ids + self._text_ids(tokenizer, rendered[at:])

    def _text_ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        whole = text.replace(self._mark, "")
        return tokenizer.encode(whole, special=False, controls=False) if whole else []

    def _broken(self, match: re.Match[str]) -> str:
        found = match.group()
        return found[0] + self._mark + found[1:]
