"""How many tokens an answer says it took, read off its last bytes; of one that does not say, an estimate. Pure.

A whole answer ends with `usage`, and so does a stream that was asked for it (`stream_options.include_usage`,
Anthropic's `message_delta`, the Responses' `response.completed`). Of other streams, and of those that were cut, events
and bytes of text are both counted. An event is a token where they come one by one, and many where a server joins those
that a slow reader has not taken, as Penstock's own does; a token is some `BYTES_PER_TOKEN` bytes of English, and fewer
of code or of another language. The larger number counts. What is not shown (hidden reasoning) is in neither. To ask
replicas for usage that a caller did not ask for would change all events that the caller gets: they have `"usage":null`
then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from penstock.fleet.router.prompts import BYTES_PER_TOKEN

_KEPT_BYTES: Final = 8192
# Within a JSON string the quotes would have backslashes before them: no model can write this.
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_EVENT: Final = b"data:"
_STREAMS: Final = (b"data:", b"event:", b":")
# `reasoning` is what `reasoning_content` says, once more.
_TEXT: Final = re.compile(
    rb'"(?:content|text|delta|reasoning_content|thinking|arguments|partial_json|text_output)"\s*:\s*'
    rb'"([^"\\]*(?:\\.[^"\\]*)*)"'
)
_PLAIN: Final = re.compile(rb"^data: ?([^{\[\s][^\r\n]*)", re.MULTILINE)
_MOST_LINE: Final = 65536  # bytes; what is longer is no token's event


@dataclass(frozen=True, slots=True)
class Usage:
    """None is what the answer did not say."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None  # of the prompt


class Tail:
    """The end of an answer, and how much it was."""

    __slots__ = ("_data", "_events", "_line", "_reads", "_streams", "_text_bytes", "size")

    def __init__(self, reads: bool = False) -> None:
        """`reads`: for `written`, which costs more than the rest."""
        self._data = b""
        self._reads = reads
        self._streams: bool | None = None
        self._events = 0
        self._text_bytes = 0
        self._line = b""  # the last one, which has not ended
        self.size = 0

    def add(self, pieces: Sequence[bytes]) -> None:
        """More of the answer."""
        for piece in pieces:
            if self._streams is None:
                self._streams = piece.startswith(_STREAMS)
            if self._reads and self._streams:
                self._read(piece)
            self.size += len(piece)
            self._data = (self._data + piece)[-_KEPT_BYTES:]

    def usage(self) -> Usage:
        """As the answer says."""
        return read_usage(self._data)

    def written(self) -> float | None:
        """Tokens of a stream's output, estimated; None of an answer that is no stream."""
        return max(float(self._events), self._text_bytes / BYTES_PER_TOKEN) if self._streams else None

    def _read(self, piece: bytes) -> None:
        lines = self._line + piece
        end = lines.rfind(b"\n") + 1
        if len(lines) - end > _MOST_LINE:
            end = len(lines)
        self._line = lines[end:]
        if end:
            lines = lines[:end]
            self._events += lines.count(_EVENT)
            self._text_bytes += text_bytes(lines)


def text_bytes(lines: bytes) -> int:
    """Of the text in these events: of JSON's strings where a surface has text, or of events that are text."""
    size = 0
    for text in _TEXT.findall(lines):
        size += len(text) - text.count(b"\\") - 2 * text.count(b"\\u")  # three bytes for one that was written in six
    return size + sum(map(len, _PLAIN.findall(lines)))


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
