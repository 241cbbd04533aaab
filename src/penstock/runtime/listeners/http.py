"""The HTTP listener: accepts connections, keeps their time, drains them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl as tls
from collections.abc import Sequence
from typing import Final

from penstock.core.door import Door
from penstock.protocols import HttpProtocol
from penstock.runtime.listeners import last_words
from penstock.runtime.listeners.connection import Connection
from penstock.runtime.listeners.http_options import HttpCounters, HttpOptions
from penstock.runtime.listeners.router import Router
from penstock.runtime.listeners.site import Site

log = logging.getLogger("penstock.http")

# So long after winding down begins, idle connections are kept: a request may be on its way on one, and would be cut
# with it. Several round trips across a continent, and little beside the time that a process takes to end.
LAST_REQUESTS_S: Final = 0.25


class HttpListener:
    """Serves HTTP protocols through one door. All methods are for the loop's thread.

    `start`, then in this order `wind_down` (optional), `stop_accepting`, `drain`.
    """

    def __init__(self, door: Door, protocols: Sequence[HttpProtocol], options: HttpOptions | None = None) -> None:
        """
        Raises:
            InvalidInput: two protocols answer the same route, or an API key is not usable.
        """
        self._site = Site(door, Router(protocols), options or HttpOptions())
        self._server: asyncio.Server | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._winding_since: float | None = None
        self._ssl: tls.SSLContext | None = None
        self._late: set[asyncio.Task[None]] = set()  # connections that came just before the port was closed

    @property
    def counters(self) -> HttpCounters:
        """Cumulative figures, and the number of open connections."""
        return self._site.counters

    async def start(self, host: str, port: int, *, reuse_port: bool = False, ssl: tls.SSLContext | None = None) -> int:
        """Listens, and returns the port (the one taken when `port` is 0).

        Raises:
            OSError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        options = self._site.options
        if port == 0:  # a name with several addresses would get another port for each: take its first
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            host = str(infos[0][4][0])
        self._ssl = ssl
        self._server = await loop.create_server(
            self._connection, host, port, ssl=ssl, backlog=options.backlog, reuse_port=reuse_port or None,
            ssl_handshake_timeout=options.header_timeout_s if ssl else None,
        )  # fmt: skip
        self._ticking()
        return int(self._server.sockets[0].getsockname()[1])

    def wind_down(self) -> None:
        """From now on each answer that leaves its connection idle closes it; connections are still accepted."""
        self._site.draining = True
        if self._winding_since is None:
            self._winding_since = asyncio.get_running_loop().time()

    def stop_accepting(self) -> None:
        """Closes the port. Connections that are open stay, and so do those that the system has open already."""
        if self._server is not None:
            for number in [each.fileno() for each in self._server.sockets]:
                for accepted in _waiting(number, self._site.options.backlog):
                    task = asyncio.ensure_future(self._take(accepted))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)
            self._server.close()
            self._server = None

    async def drain(self, grace_s: float) -> int:
        """Closes each connection when it is answered or `grace_s` is over, and those that stay idle after a moment.
        Shortly before the end of the grace, what still runs ends with an error that says so.

        Returns the number of connections that had to be cut. The listener is over then.
        """
        self.stop_accepting()
        site = self._site
        self.wind_down()
        site.empty.clear()
        now = asyncio.get_running_loop().time
        give_up = now() + grace_s
        if self._late:
            await asyncio.wait(self._late, timeout=grace_s)
        for _ in range(2):  # requests that have arrived are read before "idle" is judged
            await asyncio.sleep(0)
        await self._emptied(min(give_up, (self._winding_since or 0.0) + LAST_REQUESTS_S) - now())
        site.closing = True
        for connection in tuple(site.connections):
            connection.wind_down()
        await self._emptied(give_up - last_words.last_words_s(grace_s) - now())
        for connection in tuple(site.connections):
            connection.stop(last_words.out_of_grace(grace_s))
        await self._emptied(last_words.cut_by(give_up, now()))
        for task in tuple(self._late):
            task.cancel()
        left = tuple(site.connections)
        for connection in left:
            connection.cut()
        if left:
            await site.empty.wait()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        return len(left)

    def _connection(self) -> Connection:
        return Connection(self._site)

    async def _take(self, accepted: socket.socket) -> None:
        timeout_s = self._site.options.header_timeout_s if self._ssl else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, accepted, ssl=self._ssl, ssl_handshake_timeout=timeout_s
            )
        except OSError:  # the client is gone, or its handshake failed
            accepted.close()

    async def _emptied(self, timeout_s: float) -> None:
        """Returns when no connection is left, or time is up."""
        if self._site.connections and timeout_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._site.empty.wait()

    def _ticking(self) -> None:
        try:
            self._site.tick()
        except Exception:
            log.exception("the listener's tick failed")
        self._tick = asyncio.get_running_loop().call_later(self._site.options.tick_s, self._ticking)


def _waiting(number: int, most: int) -> list[socket.socket]:
    """Connections that clients have, and nobody has accepted yet: closing the port would reset them."""
    found = []
    with socket.socket(fileno=os.dup(number)) as listening:
        listening.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(most):
                accepted, _ = listening.accept()
                accepted.setblocking(False)
                found.append(accepted)
    return found
