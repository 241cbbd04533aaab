"""The router's gRPC front: any service and method of the replicas behind one port. Imports grpc.

Measured (`bench/grpc_pass_through.py` says how): a call costs grpcio about 130 us as a server and as much again as a
client; what is done here between the two is under a tenth of it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from penstock.core.errors import InvalidInput, NotFound, PenstockError, Unsupported
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.grpc_channels import Channels
from penstock.fleet.router.grpc_outcome import unexpected
from penstock.fleet.router.grpc_own import Health, index_handler, reflection_handlers, refusal, server_handlers
from penstock.fleet.router.grpc_pass import Arrival, OnError, Passing
from penstock.fleet.router.grpc_peek import UNARY, V2, named_in_metadata, names_model, text_metadata
from penstock.fleet.router.hooks import Hooks
from penstock.fleet.router.lanes import Service
from penstock.fleet.routes import Table
from penstock.tls import tls_context

# What belongs to one runtime and not to its callers, as `table.private` says of paths.
_PRIVATE = frozenset(
    V2 + method
    for method in (
        "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings",
        *(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")),
    )
)  # fmt: skip
_MOST_PENDING = 20_000
_MOST_STREAMS = 10_000


@dataclass(frozen=True, slots=True)
class GrpcFrontOptions:
    """What bounds the front. Sizes in bytes."""

    max_message_bytes: int = 256 << 20  # of a caller's message; answers have the replicas' limits
    max_metadata_bytes: int = 64 << 10
    reuse_port: bool = False  # several routers share one port
    tls_cert: str | None = None  # with `tls_key`, files (PEM): callers speak TLS
    tls_key: str | None = None


class GrpcFront:
    """A gRPC server in front of the balancer's replicas. For one loop. It goes by the balancer's table; its own `table`
    is to be called after each `Balancer.follow`."""

    def __init__(
        self, balancer: Balancer, hooks: Hooks, options: GrpcFrontOptions | None = None, *,
        on_error: OnError = lambda deployment, error: None,
    ) -> None:  # fmt: skip
        self._balancer = balancer
        self._options = options or GrpcFrontOptions()
        self._channels = Channels()
        self._health = Health(balancer)
        self._passing = Passing(balancer, hooks, self._channels, on_error)
        self._methods = _Methods(balancer, hooks, self._passing, self._health, on_error)
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """The port bound; 0 takes a free one.

        Raises:
            InvalidInput: the address cannot be bound.
        """
        options = self._options
        server = grpc.aio.server(options=_arguments(options))
        server.add_generic_rpc_handlers((self._methods,))
        address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
        if port:
            _check_free(host, port, reuse_port=options.reuse_port)
        try:
            bound = _listen(server, address, options)
        except RuntimeError as error:
            raise InvalidInput(f"cannot listen for gRPC on {address}: {error}") from error
        await server.start()
        self._server = server
        return bound

    def table(self, table: Table) -> None:
        """The balancer follows a new table: connections to replicas that left it are closed when their calls ended."""
        self._channels.keep(
            {upstream.id for endpoint in table.endpoints for arm in endpoint.arms for upstream in arm.upstreams}
        )
        self._health.changed()

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, gives those in flight `grace_s`, then cancels them."""
        self._health.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        await self._passing.close()
        await self._channels.close()


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """The handler of each call, found by its method and metadata before any message is read."""

    def __init__(self, balancer: Balancer, hooks: Hooks, passing: Passing, health: Health, on_error: OnError) -> None:
        self._balancer = balancer
        self._tenants = hooks.tenants
        self._passing = passing
        self._on_error = on_error
        self._public = health.handlers
        self._own = {**reflection_handlers(), **server_handlers(balancer)}

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        method = details.method
        try:
            return self._handler(method, details.invocation_metadata)
        except PenstockError as error:
            refused = error
        except Exception:
            refused = unexpected(method)
        self._on_error("", refused)
        return refusal(refused)

    def _handler(self, method: str, metadata: Any) -> grpc.RpcMethodHandler:
        """Raises: PenstockError."""
        public = self._public.get(method)
        if public is not None:
            return public
        headers = text_metadata(metadata)
        tenant = self._tenants.authenticate(headers.get("authorization"), headers.get("x-api-key"))
        if method == V2 + "RepositoryIndex":
            return index_handler(self._balancer, tenant)
        if method in _PRIVATE:
            raise Unsupported(f"{method[len(V2) :]} belongs to one replica; the platform does it itself")
        service = self._named(headers)
        if service is None:
            own = self._own.get(method)
            if own is not None:
                return own
            if not names_model(method):
                raise NotFound("no deployment is named: send its name as `penstock-endpoint` metadata")
        arrival = Arrival(method, metadata, headers, tenant, service, self._balancer.clock())
        return self._passing.unary(arrival) if method in UNARY else self._passing.stream(arrival)

    def _named(self, headers: dict[str, str]) -> Service | None:
        """Whom metadata names, or a rule of a deployment for hosts and headers; None where the message has to tell."""
        name = named_in_metadata(headers)
        if name is not None:
            service = self._balancer.services.get(name)
            if service is None:
                raise NotFound(f"there is no deployment {name[:200]!r} here")
            return service
        host = headers.get("x-forwarded-host") or headers.get("host") or ""
        endpoint = self._balancer.table.by_host(host, headers)
        return None if endpoint is None else self._balancer.services.get(endpoint.name)


def _listen(server: grpc.aio.Server, address: str, options: GrpcFrontOptions) -> int:
    if options.tls_cert is None or options.tls_key is None:
        return int(server.add_insecure_port(address))
    tls_context(options.tls_cert, options.tls_key)  # grpc takes any bytes, and fails at the first handshake
    pair = Path(options.tls_key).read_bytes(), Path(options.tls_cert).read_bytes()
    return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))


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
        raise InvalidInput(f"cannot listen for gRPC on {host}:{port}: {error.strerror or error}") from error


def _arguments(options: GrpcFrontOptions) -> list[tuple[str, int]]:
    """Channel arguments, as the runtime's listener has them and for the same reasons.

    Source: grpc/impl/channel_arg_names.h.
    """
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", options.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
        # Beyond 1,000 calls that were not yet handed to our loop, grpc would reset some at random.
        ("grpc.server.max_pending_requests", _MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
        ("grpc.max_concurrent_streams", _MOST_STREAMS),
        # Without this, a second server on the same port would silently take half of the connections.
        ("grpc.so_reuseport", int(options.reuse_port)),
        # A client that vanished without a word is noticed after 80 s, and its calls ended.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients that ping each 10 to 30 s are welcome
    ]
