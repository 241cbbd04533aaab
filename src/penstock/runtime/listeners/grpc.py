"""The gRPC listener: any number of services on one port, health and reflection beside them.

It is built on grpc.aio, whose handlers run on the caller's own loop. Measured (bench/grpc_listener.py): an empty call
costs 160 us of processor time with 16 or 64 in flight, and one through this listener and the V2 protocol 180 us, which
is 6,000 calls/s on one core. grpcio's threaded server, bridged to the loop, costs 200 to 350 us, and a thread for each
call in flight would keep refusals, cancellations and the queue's view of the load waiting for a free thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.core.door import Door
from penstock.core.errors import InvalidInput
from penstock.protocols import GrpcProtocol, Limits
from penstock.runtime.listeners.hold import Hold
from penstock.runtime.listeners.witness import Witness
from penstock.tls import tls_context

if TYPE_CHECKING:
    import grpc
    import grpc.aio


_ALL_IPV4 = "0.0.0.0"
_MOST_PENDING = 20_000
_MOST_STREAMS = 10_000


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """Everything that bounds one listener. Sizes in bytes, times in seconds."""

    authorise: Callable[[str | None], bool] | None = None  # of `authorization` metadata; None lets everybody in
    tls_cert: str | None = None  # PEM files
    tls_key: str | None = None
    tls_client_ca: str | None = None
    max_message_bytes: int = 256 << 20
    max_metadata_bytes: int = 64 << 10
    response_compression: str = "none"  # or "deflate" or "gzip"; requests may always be compressed
    timing_metadata: bool = False  # trailing `server-timing` on unary inference
    max_stream_in_flight: int = 256  # requests of one stream that are worked on; more are not read
    witness: Witness | None = None  # notes requests in spans or the access log; None: neither is on
    reuse_port: bool = False  # several listeners share one port
    connection_age_s: float | None = None  # then a connection is asked to be made anew (GOAWAY), give or take a tenth
    limits: Limits = field(default_factory=Limits)


class GrpcListener:
    """A gRPC server for `protocols` in front of `door`. To be used on one running loop.

    Everything but grpc.health.v1 needs `options.authorise` to say yes, what does not exist included.
    """

    def __init__(self, door: Door, protocols: Sequence[GrpcProtocol], options: GrpcOptions | None = None) -> None:
        self._door = door
        self._protocols = tuple(protocols)
        self._options = options or GrpcOptions()
        self._stopping = asyncio.Event()
        self._hold = Hold()
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """The port bound; 0 takes a free one. Listens on `host` only. Imports grpc, which takes a while (0.1 s).

        Raises:
            InvalidInput: the address cannot be bound, a TLS file cannot be used, or an option has no meaning.
        """
        options = self._options
        address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
        with _no_fork_handlers():
            import grpc

            from penstock.runtime.listeners.grpc_calls import Methods

            credentials = _credentials(options)
            _check_free(host, port, reuse_port=options.reuse_port)
            compression = _compression(options.response_compression)
            server = grpc.aio.server(options=_arguments(options), compression=compression)
        server.add_generic_rpc_handlers((Methods(self._door, self._protocols, options, self._stopping, self._hold),))
        try:
            with _ipv4_only(host, port) as port:
                address = address if host != _ALL_IPV4 else f"{host}:{port}"
                bound: int = (
                    server.add_insecure_port(address)
                    if credentials is None
                    else server.add_secure_port(address, credentials)
                )
        except RuntimeError as error:
            raise InvalidInput(f"cannot listen for gRPC on {address}: {error}") from error
        if bound == 0:
            raise InvalidInput(f"cannot listen for gRPC on {address}")
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls (after a moment in which they are held: see `hold`), gives those in flight `grace_s`, then
        cancels them. Open streams and health watches end as soon as what was read from them is answered."""
        self._stopping.set()
        if self._server is not None:
            began = time.monotonic()
            await self._hold.run_dry(grace_s)
            stopping = asyncio.ensure_future(self._server.stop(max(0.0, grace_s - (time.monotonic() - began))))
            await asyncio.sleep(0)  # the stop has begun
            self._hold.release()
            await stopping
            self._server = None


@contextlib.contextmanager
def _no_fork_handlers() -> Iterator[None]:
    """What begins grpc inside leaves its handlers for forks out.

    They stop its threads before a fork and start them again after it. Workers are started without a fork (vfork and
    exec); but where the system has no process left, Python tries a fork instead, and there is no thread left either:
    grpc was dead from then on. The variable is gone again before anybody else could inherit it.
    """
    name = "GRPC_ENABLE_FORK_SUPPORT"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]


def _check_free(host: str, port: int, *, reuse_port: bool) -> None:
    """Raises InvalidInput when the address cannot be bound: grpc's own error would name its environment variables."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind((host.strip("[]"), port))
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on grpc_port = {port}: {error.strerror or error}; another port is free with 0"
        ) from error


@contextlib.contextmanager
def _ipv4_only(host: str, port: int) -> Iterator[int]:
    """While this is open, grpc takes `0.0.0.0` for what it says; gives the port to bind, a free one for 0.

    By itself grpc reads it as "everything" and listens on IPv6 too, where a firewall may not expect anybody. It falls
    back to IPv4 when the port is taken on IPv6, so it is.
    """
    if host != _ALL_IPV4 or not socket.has_ipv6:
        yield port
        return
    if port == 0:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    with socket.socket(socket.AF_INET6) as holder:
        with contextlib.suppress(OSError):  # no IPv6 here, or somebody has that port: then grpc cannot have it either
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            holder.bind(("::", port))
        yield port


def _arguments(options: GrpcOptions) -> list[tuple[str, int]]:
    """Channel arguments. Source: grpc/impl/channel_arg_names.h."""
    age_s = options.connection_age_s
    return [
        *([] if age_s is None else [("grpc.max_connection_age_ms", max(1, round(age_s * 1000)))]),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", options.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
        # Calls that were read and not yet handed to our loop. Beyond 1,000 of all connections together grpc would reset
        # calls at random, which their clients see as CANCELLED: 1,451 of a burst of 5,000, and other clients' calls
        # when one client opens and resets streams. Here every call is to get an answer. Each waiting one takes 15 KB.
        ("grpc.server.max_pending_requests", _MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
        # Of one connection; beyond it grpc refuses (UNAVAILABLE). With any number here grpc also keeps a client that
        # opens and resets streams from filling the above alone; a tenth would refuse the bursts of honest clients.
        ("grpc.max_concurrent_streams", _MOST_STREAMS),
        # Without this, a second server on the same port would silently take half of the connections.
        ("grpc.so_reuseport", int(options.reuse_port)),
        # A client that vanished without a word is noticed after 80 s, and its queued work dropped.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients' own keep-alive pings: grpc's default of one in 5 minutes would close connections of clients that ask
        # for the usual 10 to 30 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


def _compression(name: str) -> grpc.Compression | None:
    import grpc

    kinds = {"none": None, "deflate": grpc.Compression.Deflate, "gzip": grpc.Compression.Gzip}
    if name not in kinds:
        raise InvalidInput(f"gRPC response compression {name!r}: one of {', '.join(kinds)}")
    return kinds[name]


def _credentials(options: GrpcOptions) -> grpc.ServerCredentials | None:
    import grpc

    cert, key, client_ca = options.tls_cert, options.tls_key, options.tls_client_ca
    if cert is None or key is None:
        if cert or key or client_ca:
            raise InvalidInput("TLS needs both a certificate and a key")
        return None
    tls_context(cert, key, client_ca)  # grpc itself accepts any bytes here and fails at the first handshake
    return grpc.ssl_server_credentials(
        [(Path(key).read_bytes(), Path(cert).read_bytes())],
        root_certificates=Path(client_ca).read_bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )
