"""The platform's options: flags of `penstock up`, and `PENSTOCK_UP_*` in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.config import Layer, option, prefixed_layer, resolve
from penstock.core.addresses import is_loopback
from penstock.core.errors import InvalidInput

PREFIX = "PENSTOCK_UP_"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """One platform: its public ports, its processes, and where it keeps its state."""

    state: str | None = option(None, "Folder of the platform's state [default: ~/.local/share/penstock].")
    host: str = option("127.0.0.1", "Address of the public ports. Anything but loopback needs a tenant's key.")
    http_port: int = option(8080, "Public HTTP port; 0 takes a free one.", minimum=0, maximum=65535)
    grpc_port: int = option(8081, "Public gRPC port; 0 takes a free one.", minimum=0, maximum=65535)
    grpc: bool = option(True, "Listen for gRPC.")
    tls_cert: str | None = option(None, "Certificate chain (PEM) for both public ports.")
    tls_key: str | None = option(None, "Private key (PEM) for both public ports.")
    routers: int = option(1, "Router processes that share the public ports.", minimum=1, maximum=256)
    allow_anonymous: bool = option(False, "Allow callers without a key on an address that is not loopback.")
    database: str | None = option(
        None, "Database of the state, such as postgresql://… [default: SQLite in the state's folder].", secret=True
    )
    driver: str = option("local", "Where replicas run; a plug of fleet.drivers.")
    admin_host: str = option("127.0.0.1", "Address of the controller's HTTP API, where admin_port is given.")
    admin_port: int | None = option(
        None,
        "Port of the controller's HTTP API beside its Unix socket; needs admin_key_file.",
        minimum=0,
        maximum=65535,
    )
    admin_key_file: str | None = option(None, "File with the key that callers of the admin port send.")
    grace_s: float = option(30.0, "Time for requests in flight to finish after SIGTERM.", unit="s", minimum=0)
    log_format: str = option(
        "auto", "Log and ready lines: text on a terminal, else JSON.", choices=("auto", "text", "json")
    )
    log_level: str = option("info", "Least level logged.", choices=("debug", "info", "warning", "error"))


def read_options(flags: Mapping[str, object], environ: Mapping[str, str]) -> UpOptions:
    """The effective options.

    Raises:
        InvalidInput: one is unknown, wrong, or cannot take effect.
    """
    options = resolve(UpOptions, [Layer("{flag}", flags), prefixed_layer(UpOptions, PREFIX, environ)]).value
    if options.admin_port is not None and options.admin_key_file is None:
        raise InvalidInput("admin_port needs admin_key_file: whoever reaches that port can run code here")
    if options.admin_key_file is not None and options.admin_port is None:
        raise InvalidInput("admin_key_file has no effect without admin_port")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise InvalidInput("tls_cert and tls_key need each other")
    if options.allow_anonymous and is_loopback(options.host):
        raise InvalidInput(f"allow_anonymous has no effect on {options.host}, which only this machine reaches")
    return options
