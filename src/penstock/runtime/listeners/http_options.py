"""The limits and times of the HTTP listener, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.protocols import Limits
from penstock.runtime.listeners.witness import Witness


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Everything that bounds one listener. Sizes in bytes, times in seconds."""

    api_keys: tuple[tuple[str, str], ...] = ()  # each with its caller's name; none: no key is asked for
    max_body_bytes: int = 256 << 20
    max_header_bytes: int = 64 << 10  # request line, headers and trailers together
    max_headers: int = 100
    max_connections: int = 10_000
    max_pipelined: int = 16  # requests of one connection that are worked on at a time
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    write_timeout_s: float = 60.0  # a reader that takes nothing for so long is cut
    linger_s: float = 2.0  # after refusing an unread body: how long to let the client read the answer
    tick_s: float = 0.5  # the one timer; every time above may be exceeded by two ticks, and is never cut short
    timing_headers: bool = False
    witness: Witness | None = None  # notes requests in spans or the access log; None: neither is on
    server_name: str = "penstock"
    backlog: int = 2048
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class HttpCounters:
    """What a listener has seen since it was made; read by the server's metrics."""

    connections_open: int = 0
    connections_total: int = 0
    responses: list[int] = field(default_factory=lambda: [0] * 6)  # by the first digit of the status
    refused: dict[str, int] = field(default_factory=dict)  # by reason: a closed set, see `refuse`'s callers
    abandoned: int = 0  # requests whose client left before the answer
    bytes_received: int = 0
    bytes_sent: int = 0

    def refuse(self, reason: str) -> None:
        """Counts one refusal by the listener itself, before any protocol or model saw the request."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
