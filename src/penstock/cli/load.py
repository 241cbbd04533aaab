"""A closed loop of HTTP calls: each connection sends its next request when its last one was answered.

Theory of operation. One `asyncio.Protocol` per connection, one parser (httptools), one prepared request: the generator
costs about as much processor time as a fast server, so it must not do anything per request that is not measured.
A closed loop cannot overload a server; it finds its throughput at a given concurrency, and the latency there.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools

from penstock.client.tensors import server_timing

# Every so many requests ask for the server's own times, so that asking does not slow down the rest.
TIMED_EVERY = 16


@dataclass(slots=True)
class Tally:
    """What one run saw. Latencies in seconds, of answers with status 200."""

    latencies_s: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    server_s: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def fail(self, why: str) -> None:
        self.errors[why] = self.errors.get(why, 0) + 1

    def server_timing(self, header: str) -> None:
        """Takes a Server-Timing header."""
        for name, seconds in server_timing(header).items():
            self.server_s.setdefault(name, []).append(seconds)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send what: two whole HTTP requests, one of which asks for the server's times."""

    host: str
    port: int
    plain: bytes
    timed: bytes
    tls: ssl.SSLContext | None = None


class _Connection(asyncio.Protocol):
    """One client that sends, waits and sends again until `stop_at`."""

    def __init__(self, target: Target, tally: Tally, stop_at: float, finished: Callable[[], None]) -> None:
        self._target, self._tally, self._stop_at, self._finished = target, tally, stop_at, finished
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = 0.0
        self._count = 0
        self._waiting = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclasses of asyncio's
        self._send()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._tally.fail("malformed answer")
            self._waiting = False
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._tally.fail("connection lost")
        self._finished()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._tally.server_timing(value.decode("latin-1"))

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self._waiting = False
        status = self._parser.get_status_code()
        if status == 200:
            self._tally.latencies_s.append(now - self._sent_at)
        else:
            self._tally.fail(f"status {status}")
        if now >= self._stop_at or not self._parser.should_keep_alive():
            self._close()
        else:
            self._send()

    def _send(self) -> None:
        if self._transport is None:
            return
        self._count += 1
        self._waiting = True
        self._sent_at = time.perf_counter()
        self._transport.write(self._target.timed if self._count % TIMED_EVERY == 1 else self._target.plain)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def run(target: Target, connections: int, duration_s: float) -> Tally:
    """What `connections` clients saw in `duration_s`.

    Raises:
        OSError: the first connection cannot be made.
    """
    tally = Tally()
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    stop_at = begun + duration_s
    ends: list[asyncio.Future[None]] = []
    for _ in range(connections):
        end: asyncio.Future[None] = loop.create_future()

        def finished(end: asyncio.Future[None] = end) -> None:
            if not end.done():
                end.set_result(None)

        await loop.create_connection(
            lambda finished=finished: _Connection(target, tally, stop_at, finished),
            target.host,
            target.port,
            ssl=target.tls,
        )
        ends.append(end)
    # A server that stops answering must not hold the command up for ever: what is out then counts as lost.
    _, late = await asyncio.wait(ends, timeout=duration_s + 30)
    for _ in late:
        tally.fail("no answer within 30 s")
    tally.seconds = time.perf_counter() - begun
    return tally
