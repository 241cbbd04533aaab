"""gRPC connections to replicas: one channel per replica, opened at its first call, closed when it left the table and
its last call ended. Imports grpc."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import grpc
import grpc.aio

from penstock.fleet.router.lanes import Upstream

# Callables of methods that are kept per channel. Method names are the callers': what goes beyond is made anew each time
# (10 us).
_MOST_METHODS = 64

# grpc's channel keeps some 100 bytes of each method it was ever asked for, until it is closed (grpcio 1.85; the server
# does not). So a channel that was asked for many gives way to a new one.
_MOST_STRANGE_CALLS = 10_000

# Source: grpc/impl/channel_arg_names.h.
_ARGUMENTS = (
    ("grpc.max_receive_message_length", -1),  # of a replica, which has its own limits
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 256 << 10),
    ("grpc.absolute_max_metadata_size", 512 << 10),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment is not for replicas
    ("grpc.use_local_subchannel_pool", 1),  # an address that is used again is another replica
    # A replica that refused is asked again when the balancer says so, not after grpc's own 1 to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Link:
    """The channel to one replica. `calls` in flight keep it open."""

    __slots__ = ("_streams", "_unary", "calls", "channel", "gone", "strange_calls")

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=_ARGUMENTS)
        self.calls = 0
        self.gone = False
        self.strange_calls = 0  # of methods that are not kept
        self._unary: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    def unary(self, method: str) -> Any:
        """Calls the method with one message for one, both as bytes."""
        return self._callable(self._unary, method, self.channel.unary_unary)

    def stream(self, method: str) -> Any:
        """Calls the method with any number of messages each way."""
        return self._callable(self._streams, method, self.channel.stream_stream)

    def _callable(self, known: dict[str, Any], method: str, make: Callable[[str], Any]) -> Any:
        found = known.get(method)
        if found is None:
            found = make(method)
            if len(known) < _MOST_METHODS:
                known[method] = found
            else:
                self.strange_calls += 1
        return found


class Channels:
    """The links of one router, by replica. For one loop."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._links)

    def take(self, upstream: Upstream) -> Link:
        """The link to a replica, to be given back with `release`."""
        link = self._links.get(upstream.id)
        if link is not None and link.strange_calls >= _MOST_STRANGE_CALLS:
            del self._links[upstream.id]
            self._end(link)
            link = None
        if link is None:
            link = Link(upstream.grpc)
            if upstream.gone:  # it left the table since it was chosen: this one call is all
                link.gone = True
            else:
                self._links[upstream.id] = link
        link.calls += 1
        return link

    def release(self, link: Link) -> None:
        link.calls -= 1
        if link.gone and link.calls == 0:
            self._close(link)

    def keep(self, replicas: Collection[str]) -> None:
        """Drops the links of all other replicas: at once, or when their calls have ended."""
        for name in [name for name in self._links if name not in replicas]:
            self._end(self._links.pop(name))

    async def close(self) -> None:
        """Closes everything; calls in flight end."""
        links, self._links = [*self._links.values()], {}
        for link in links:
            await link.channel.close()
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _end(self, link: Link) -> None:
        link.gone = True
        if link.calls == 0:
            self._close(link)

    def _close(self, link: Link) -> None:
        task = asyncio.ensure_future(link.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
