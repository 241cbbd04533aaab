"""Which server a command talks to: the flags, and the client made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from penstock import config
from penstock.client import Client, Tls
from penstock.core.errors import InvalidInput, NotReady, WorkerLost

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str | None, typer.Option(metavar="URL", help=f"The server; else PENSTOCK_URL, else {DEFAULT_URL}.")]
ApiKey = Annotated[str | None, typer.Option(metavar="KEY", help="The API key; else PENSTOCK_API_KEY.")]
CaFile = Annotated[
    str | None, typer.Option("--ca-file", metavar="FILE", help="CA (PEM) that issued the server's certificate.")
]
ClientCert = Annotated[
    str | None,
    typer.Option("--client-cert", metavar="FILE", help="Certificate (PEM) to show to a server that asks for one."),
]
ClientKey = Annotated[
    str | None,
    typer.Option("--client-key", metavar="FILE", help="Its private key (PEM), where that is in a file of its own."),
]


def server_url(url: str | None) -> str:
    """The flag, the environment or the default."""
    return url or config.environment().get("PENSTOCK_URL") or DEFAULT_URL


def server_key(api_key: str | None) -> str | None:
    """The flag or the environment."""
    return api_key or config.environment().get("PENSTOCK_API_KEY") or None


def tls_of(ca_file: str | None, client_cert: str | None, client_key: str | None) -> Tls:
    """What the flags say.

    Raises:
        InvalidInput: a file cannot be used.
    """
    if client_key and not client_cert:
        raise InvalidInput("--client-key needs --client-cert")
    tls = Tls(ca_file=ca_file, client_cert=client_cert, client_key=client_key)
    try:
        if ca_file or client_cert:
            tls.context()
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(file for file in (ca_file, client_cert, client_key) if file)
        raise InvalidInput(f"cannot use {files} for TLS: {error}") from error
    return tls


@contextlib.contextmanager
def connect(url: str | None, api_key: str | None, tls: Tls, *, timing: bool = False) -> Iterator[Client]:
    """A client of what the flags, the environment or the default name. A command tells at once that nothing answers,
    so it does not retry.

    Raises:
        NotReady: nothing answers there.
    """
    address = server_url(url)
    with Client(address, api_key=server_key(api_key), tls=tls, timing=timing, retries=0) as client:
        try:
            client.live()
        except NotReady as error:
            import ssl  # takes 10 ms

            hint = "start a server with `penstock serve`, or name another with --url"
            if isinstance(error.__cause__, ssl.SSLError):
                hint = "--ca-file names the CA of a server's own certificate, --client-cert what it may ask for"
            raise NotReady(f"{error.message}; {hint}") from error
        except WorkerLost as error:  # another protocol's port, or TLS
            raise NotReady(
                f"what listens at {address} does not answer as an HTTP server; try https:// for TLS, and the HTTP port"
            ) from error
        yield client


def name_and_version(model: str) -> tuple[str, str]:
    """`NAME@VERSION` in two; the version is "" where there is none."""
    name, _, version = model.partition("@")
    return name, version


def only_model(client: Client) -> str:
    """The name of the one model that a server has. Raises: InvalidInput when it has none, or several."""
    names = client.models()
    if len(names) != 1:
        raise InvalidInput(f"name a model: {', '.join(names) or 'the server has none'}")
    return names[0]
