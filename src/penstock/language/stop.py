"""Stop strings, which may be cut across tokens.

The text is looked at as if it came letter by letter: the first stop to be complete ends it (of several complete at
the same letter the longest), so that how the text was cut makes no difference. What is held back is the longest end
of the text that could still become a stop, and never more.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Lets text through up to the first of `stops`. `met` is that stop, None before; `include` lets it through too."""

    def __init__(self, stops: Iterable[str], include: bool = False) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._known = frozenset(stop[:length] for stop in self._stops for length in range(1, len(stop)))
        self._beginnings = tuple(self._known)
        self._longest = max((len(stop) for stop in self._stops), default=1) - 1
        self._include = include
        self._held = ""
        self.met: str | None = None

    def feed(self, text: str) -> str:
        """What of the text so far may be shown now and was not before; "" for all that comes after a stop."""
        if self.met is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = self._first(text)
        if found is not None:
            start, self.met = found
            self._held = ""
            return text[: start + len(self.met)] if self._include else text[:start]
        held = self._beginning_at_end(text) if text.endswith(self._beginnings) else 0
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    @property
    def any(self) -> bool:
        """Whether there is a stop to be met."""
        return bool(self._stops)

    @property
    def holding(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    def _first(self, text: str) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _beginning_at_end(self, text: str) -> int:
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[len(text) - length :] in self._known:
                return length
        return 0
