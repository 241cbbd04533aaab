"""What every process that listens for HTTP makes from the server's options: protocols, limits, keys, TLS."""

from __future__ import annotations

import dataclasses
import resource
import ssl
from pathlib import Path
from typing import cast

import penstock
from penstock import plugins
from penstock.core.addresses import is_loopback
from penstock.core.errors import InvalidInput
from penstock.protocols import GrpcProtocol, HttpProtocol, Limits, described
from penstock.runtime import keys
from penstock.runtime.keys import ApiKey, Keys
from penstock.runtime.listeners.auth import ApiKeys
from penstock.runtime.listeners.grpc import GrpcOptions
from penstock.runtime.listeners.http_options import HttpOptions
from penstock.runtime.listeners.witness import Witness
from penstock.runtime.options import ServerOptions
from penstock.telemetry.spans import Spans
from penstock.tls import tls_context

PROTOCOLS = "penstock.protocols"

# What a stopping process gives its last spans to be sent in.
LAST_SPANS_S = 2.0


def http_protocols() -> list[HttpProtocol]:
    """Every protocol over HTTP: their files' names end so."""
    plugs = [plugins.load(PROTOCOLS, name) for name in plugins.names(PROTOCOLS) if name.endswith("_http")]
    return described(cast(list[HttpProtocol], plugs))


def grpc_protocols() -> list[GrpcProtocol]:
    """Every protocol over gRPC: their files' names end so."""
    plugs = [plugins.load(PROTOCOLS, name) for name in plugins.names(PROTOCOLS) if name.endswith("_grpc")]
    return cast(list[GrpcProtocol], plugs)


def http_options(server: ServerOptions, accepted: tuple[ApiKey, ...], witness: Witness | None = None) -> HttpOptions:
    """The HTTP listener's part of the server's options."""
    return HttpOptions(
        api_keys=accepted,
        max_body_bytes=server.max_body_bytes,
        max_header_bytes=server.max_header_bytes,
        max_connections=server.max_connections,
        header_timeout_s=server.header_timeout_s,
        body_timeout_s=server.body_timeout_s,
        keep_alive_s=server.keep_alive_s,
        timing_headers=server.timing_headers,
        witness=witness,
        limits=limits(server),
    )


def grpc_options(server: ServerOptions, accepted: tuple[ApiKey, ...], witness: Witness | None = None) -> GrpcOptions:
    """The gRPC listener's part of the server's options."""
    known = ApiKeys(accepted)
    return GrpcOptions(
        authorise=(lambda value: value is not None and known.caller({b"authorization": value.encode()}) is not None)
        if accepted
        else None,
        tls_cert=server.tls_cert,
        tls_key=server.tls_key,
        tls_client_ca=server.tls_client_ca,
        reuse_port=server.fronts > 1,
        connection_age_s=_connection_age_s(server),
        max_message_bytes=server.max_body_bytes,
        max_metadata_bytes=server.max_header_bytes,
        timing_metadata=server.timing_headers,
        witness=witness,
        limits=limits(server),
    )


def _connection_age_s(server: ServerOptions) -> float | None:
    if server.grpc_connection_age_s is not None:
        return server.grpc_connection_age_s
    # gRPC's own stop fails calls that are on their way, so connections must have moved before. A third: those that come
    # back before the balancer has learned (two thirds at most) are asked once more within the window.
    return server.lame_duck_s / 3 or None


def spans(server: ServerOptions) -> Spans | None:
    """The recorded requests of this process; None when no receiver is named. Raises: InvalidInput, without the extra
    `otel`."""
    if server.trace_endpoint is None:
        return None
    from penstock.telemetry.otlp import OtlpExporter  # takes 0.2 s to import, and is not installed everywhere

    return Spans(server.trace_sampling, OtlpExporter(server.trace_endpoint, penstock.__version__))


def limits(server: ServerOptions) -> Limits:
    """What decoders allow."""
    return Limits(server.max_json_depth, server.max_tensor_bytes, server.max_decompressed_bytes)


def server_tls(server: ServerOptions) -> ssl.SSLContext | None:
    """The TLS context that the options ask for, or None. Raises: InvalidInput."""
    if server.tls_cert is None or server.tls_key is None:
        return None
    return tls_context(server.tls_cert, server.tls_key, server.tls_client_ca)


def api_keys(server: ServerOptions) -> Keys:
    """The keys that clients may use; none when everybody may.

    Raises:
        InvalidInput: the listener is reachable from elsewhere and nothing guards it, or the key file is unusable.
    """
    found = keys.read(Path(server.api_key_file)) if server.api_key_file else Keys()
    if server.api_key:
        found = dataclasses.replace(found, keys=(keys.named(server.api_key), *found.keys))
    if not found.keys and not server.allow_anonymous and not is_loopback(server.host):
        raise InvalidInput(
            f"host {server.host} can be reached from other machines and no API key is set: set PENSTOCK_API_KEY (or "
            "--api-key-file), listen on 127.0.0.1, or say --allow-anonymous if everybody may use these models"
        )
    return found


def allow_open_files() -> None:
    """Raises this process's soft limit of open files to its hard one: the usual 1,024 is fewer than the connections
    that a listener may hold."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
