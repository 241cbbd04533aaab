"""How many tokens an answer says it took, read off its last bytes. Pure.

A whole answer ends with `usage`, and so does a stream that was asked for it (`stream_options.include_usage`,
Anthropic's `message_delta`, the Responses' `response.completed`). Of others the events are counted: most engines write
a token in each, so that this is a lower bound.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

_KEPT_BYTES: Final = 8192
# Within a JSON string the quotes would have backslashes before them: no model can write this.
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_EVENT: Final = b"data:"


@dataclass(frozen=True, slots=True)
class Usage:
    """None is what the answer did not say."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None  # of the prompt


class Tail:
    """The end of an answer, and how many events it had."""

    __slots__ = ("_data", "events", "size")

    def __init__(self) -> None:
        self._data = b""
        self.events = 0
        self.size = 0

    def add(self, pieces: Sequence[bytes]) -> None:
        """More of the answer."""
        for piece in pieces:
            self.events += piece.count(_EVENT)
            self.size += len(piece)
            self._data = (self._data + piece)[-_KEPT_BYTES:]

    def usage(self) -> Usage:
        """As the answer says."""
        return read_usage(self._data)


def read_usage(data: bytes) -> Usage:
    """The last `usage` in these bytes."""
    starts = [match.end() - 1 for match in _USAGE.finditer(data)]
    if not starts:
        return Usage()
    text = _object(data, starts[-1])
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return Usage()
    details = found.get("prompt_tokens_details") or found.get("input_tokens_details")
    cached = found.get("cache_read_input_tokens")
    if isinstance(details, dict):
        cached = details.get("cached_tokens", cached)
    return Usage(
        _count(found.get("prompt_tokens", found.get("input_tokens"))),
        _count(found.get("completion_tokens", found.get("output_tokens"))),
        _count(cached),
    )


def _object(data: bytes, start: int) -> bytes:
    """The JSON object that begins there; no string in a `usage` has braces."""
    depth = 0
    for at in range(start, len(data)):
        depth += (data[at] == 0x7B) - (data[at] == 0x7D)
        if not depth:
            return data[start : at + 1]
    return b""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None
