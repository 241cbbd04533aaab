"""W3C Trace Context and Baggage: read from a call's headers, written for the next one. Pure.

What cannot be read is left out, as the specifications ask: a caller's broken header must not fail its request.
Source: https://www.w3.org/TR/trace-context-2/ (Level 2) and https://www.w3.org/TR/baggage/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

TRACEPARENT, TRACESTATE, BAGGAGE = "traceparent", "tracestate", "baggage"

SAMPLED = 1  # the caller records this trace
_KNOWN_FLAGS = 0b11  # sampled and random; what later versions add may not be passed on by us

# A batch carries the context of every request in it, so each is bounded: by what everybody has to pass on at least.
_STATE_CHARS, _STATE_MEMBERS, _STATE_LONG = 512, 32, 128
_BAGGAGE_CHARS, _BAGGAGE_MEMBERS = 8192, 64

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]{0,500})?")
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_PRINTABLE = re.compile(r"[ -~]*")


class TraceContext(NamedTuple):
    """Where a call stands in its caller's trace. `span_id` is the span that the next calls are children of."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    flags: int = 0
    state: str = ""  # the `tracestate` header, as it came
    baggage: str = ""  # the `baggage` header, as it came

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """The value of the `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def headers(self) -> dict[str, str]:
        """The headers (or gRPC metadata) that pass this context on."""
        headers = {TRACEPARENT: self.traceparent}
        if self.state:
            headers[TRACESTATE] = self.state
        if self.baggage:
            headers[BAGGAGE] = self.baggage
        return headers


class RequestTrace(NamedTuple):
    """The context of one request of a batch, and the rows `start` to `stop` (exclusive) that are its inputs."""

    start: int
    stop: int
    trace: TraceContext


def read(traceparent: str, tracestate: str = "", baggage: str = "") -> TraceContext | None:
    """The context that these headers carry; None when `traceparent` is not valid, and then the trace begins here.

    A `tracestate` that is not valid is dropped alone, one that is too long loses whole members.
    """
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(
        trace_id,
        span_id,
        int(flags, 16) & _KNOWN_FLAGS,
        _state(tracestate) if tracestate else "",
        _baggage(baggage) if baggage else "",
    )


def leading(traces: Sequence[RequestTrace]) -> TraceContext | None:
    """The context that stands for a whole batch: its first recorded one, else its first."""
    for one in traces:
        if one.trace.flags & SAMPLED:
            return one.trace
    return traces[0].trace if traces else None


def _state(text: str) -> str:
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    if len(members) > _STATE_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return ""
    if len({member.partition("=")[0] for member in members}) < len(members):
        return ""
    if _length(members) > _STATE_CHARS:
        members = [member for member in members if len(member) <= _STATE_LONG]
    while _length(members) > _STATE_CHARS:
        members.pop()
    return ",".join(members)


def _baggage(text: str) -> str:
    if not _PRINTABLE.fullmatch(text):
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))][:_BAGGAGE_MEMBERS]
    while _length(members) > _BAGGAGE_CHARS:
        members.pop()
    return ",".join(members)


def _length(members: Sequence[str]) -> int:
    return sum(map(len, members)) + max(0, len(members) - 1)
