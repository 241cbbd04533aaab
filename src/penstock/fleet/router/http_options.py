"""Everything that bounds the HTTP front of a router. Sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The limits. Those of bodies and heads are what runtimes have by default."""

    max_body_bytes: int = 256 << 20
    max_header_bytes: int = 64 << 10
    max_headers: int = 100
    max_connections: int = 10_000
    buffered_bytes: int = 256 << 10  # a body up to this size is kept, so that it can be sent again; larger ones stream
    own_body_bytes: int = 4 << 20  # of the router's own paths: rewards in bulk
    pipelined_bytes: int = 64 << 10  # of the next requests of a connection whose request is being answered
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0  # without a byte of it
    keep_alive_s: float = 75.0
    write_timeout_s: float = 60.0  # a reader that takes nothing for so long is cut
    linger_s: float = 2.0  # after refusing an unread body: how long to let the client read the answer
    connect_timeout_s: float = 1.0  # to a replica, on the same machine or network
    # Idle connections to replicas are closed before they close them (after 75 s by default), so that no request meets
    # a connection that is being closed.
    upstream_idle_s: float = 45.0
    upstream_idle: int = 256  # idle connections kept per replica
    tick_s: float = 0.5  # every time above may be exceeded by two ticks, and is never cut short
    backlog: int = 2048
