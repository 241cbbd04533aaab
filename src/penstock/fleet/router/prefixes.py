"""Which beginnings of prompts one replica has probably in its cache. Pure; time is an argument.

Theory of operation
-------------------
A prompt is cut into blocks, and each block's key is a hash of its text and of the key before it: a key stands for
everything up to its block's end. So the radix tree of all prompts lies flat in one dictionary: a key is there or it is
not, and a parent is found by no pointer but by being the key before.

The dictionary is kept in the order of use, and a prompt touches its keys from the last to the first: a parent is always
more recent than its children. What is least recent is therefore a leaf, and what is given up for room or for age leaves
no branch without its stem.

Nobody tells a router what a replica really keeps: it is a guess, and wrong both ways. Entries age, the whole is
bounded, with a bound that learns from answers which say how much of their prompt was cached, and goes with the replica.
Source: the flat form is that of vLLM's automatic prefix caching (hash of a block and all before it).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final

BLOCK_BYTES: Final = 256
"""Of text per block: some 64 tokens. vLLM's blocks have 16, which would cost a router four times as much."""

MOST_BLOCKS: Final = 16_384
"""Per replica: a million tokens, more than most caches hold. 2 MiB of memory at most."""

LEAST_BLOCKS: Final = 64
"""What every replica is believed to keep, whatever its answers say: one prompt of 4,000 tokens."""

LONGEST_S: Final = 600.0
"""Unused for longer, a beginning is taken for given up."""


class Prefixes:
    """Of one replica."""

    __slots__ = ("_bound", "_longest_s", "_most", "_tells", "_used")

    def __init__(self, most: int = MOST_BLOCKS, longest_s: float = LONGEST_S) -> None:
        self._bound = most
        self._most = most  # as far as answers have told
        self._longest_s = longest_s
        self._tells = False  # that something was cached, some answer said: those that never do may not know
        self._used: dict[int, float] = {}  # key -> last use; the least recent first

    def __len__(self) -> int:
        return len(self._used)

    def match(self, keys: Sequence[int], now: float) -> int:
        """How many of a prompt's first blocks are there. Changes nothing."""
        used = self._used
        since = now - self._longest_s
        for count, key in enumerate(keys):
            if used.get(key, since) <= since:
                return count
        return len(keys)

    def use(self, keys: Sequence[int], now: float) -> None:
        """The replica gets a prompt with these blocks. What is over the bound of it is not kept."""
        used = self._used
        for key in reversed(keys[: self._most]):
            used.pop(key, None)
            used[key] = now
        since = now - self._longest_s
        over = len(used) - self._most
        gone: list[int] = []  # in one pass: to find a dictionary's first key costs as much as was deleted before it
        for key, last in used.items():
            if len(gone) >= over and last > since:
                break
            gone.append(key)
        for key in gone:
            del used[key]

    def learn(self, believed: int, cached: int) -> None:
        """An answer says that the replica had `cached` blocks of a prompt, of which it was believed to have `believed`.
        It keeps less than was thought if that is under a half; else perhaps more. Engines that cannot tell say 0, so
        that 0 counts only once another number was seen."""
        self._tells = self._tells or cached > 0
        if not self._tells:
            return
        if cached * 2 < believed:
            self._most = max(min(LEAST_BLOCKS, self._most), len(self._used) * 3 // 4)
            # One pass: to find a dictionary's first key costs as much as was deleted before it.
            for key in list(islice(self._used, max(0, len(self._used) - self._most))):
                del self._used[key]
        else:
            self._most = min(self._bound, self._most + believed)

    def clear(self) -> None:
        """The replica has nothing any more."""
        self._used.clear()
