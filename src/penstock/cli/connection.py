"""Which server a command talks to: the flags, and the client made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from penstock import config
from penstock.client import Client, Tls
from penstock.core.errors import NotReady

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str | None, typer.Option(metavar="URL", help=f"The server; else PENSTOCK_URL, else {DEFAULT_URL}.")]
ApiKey = Annotated[str | None, typer.Option(metavar="KEY", help="The API key; else PENSTOCK_API_KEY.")]
CaFile = Annotated[str | None, typer.Option("--ca-file", metavar="FILE", help="CA (PEM) that signed the server's key.")]


def server_url(url: str | None) -> str:
    """The flag, the environment or the default."""
    return url or config.environment().get("PENSTOCK_URL") or DEFAULT_URL


def server_key(api_key: str | None) -> str | None:
    """The flag or the environment."""
    return api_key or config.environment().get("PENSTOCK_API_KEY") or None


@contextlib.contextmanager
def connect(url: str | None, api_key: str | None, ca_file: str | None, *, timing: bool = False) -> Iterator[Client]:
    """A client of what the flags, the environment or the default name. A command tells at once that nothing answers,
    so it does not retry.

    Raises:
        NotReady: nothing answers there.
    """
    tls = Tls(ca_file=ca_file) if ca_file else None
    address = server_url(url)
    with Client(address, api_key=server_key(api_key), tls=tls, timing=timing, retries=0) as client:
        try:
            client.live()
        except NotReady as error:
            raise NotReady(
                f"{error.message}; start a server with `penstock serve`, or name another with --url"
            ) from error
        yield client


def name_and_version(model: str) -> tuple[str, str]:
    """`NAME@VERSION` in two; the version is "" where there is none."""
    name, _, version = model.partition("@")
    return name, version
