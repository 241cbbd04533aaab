"""Whether a beginning that a replica was sent before is read faster there, as the times to the first token tell. Pure.

Not every engine keeps prompts, and few say in their answers how much of one they had. What every stream shows is when
its first token came. Where the replica had nothing else to do, that is the time of reading: so the time per token of
prompts that were believed to be there, beside that of prompts that were new, says what a match is worth. It is worth
all that it promises until enough was seen of both.
"""

from __future__ import annotations

from typing import Final

LEAST_TOKENS: Final = 200.0
"""Of a prompt: with shorter ones, what is not reading outweighs it."""

NEW: Final = 0.1
KNOWN: Final = 0.5
"""Of a prompt that was believed to be there: at most, of those that count as new; at least, of those that do not."""

_SAMPLES: Final = 8
_WEIGHT: Final = 1 / 8  # of the latest in each mean


class Gain:
    """Of one revision: its replicas have the same engine."""

    __slots__ = ("_known", "_known_s", "_new", "_new_s", "_share", "worth")

    def __init__(self) -> None:
        self.worth = 1.0  # 0 to 1: of what a match promises, what it gives
        self._new = self._known = 0  # samples
        self._new_s = self._known_s = 0.0  # per token of the prompt
        self._share = 0.0  # of it that was believed to be there, of the known ones

    def observe(self, tokens: float, share: float, took_s: float) -> None:
        """An idle replica's first token of a prompt came after this time; of the prompt, `share` was believed to be
        there."""
        if tokens < LEAST_TOKENS or took_s <= 0.0 or NEW < share < KNOWN:
            return
        per_token_s = took_s / tokens
        if share <= NEW:
            self._new += 1
            self._new_s += (per_token_s - self._new_s) * max(_WEIGHT, 1 / self._new)
        else:
            self._known += 1
            weight = max(_WEIGHT, 1 / self._known)
            self._known_s += (per_token_s - self._known_s) * weight
            self._share += (share - self._share) * weight
        if self._new >= _SAMPLES and self._known >= _SAMPLES:
            self.worth = min(1.0, max(0.0, (1.0 - self._known_s / self._new_s) / self._share))
