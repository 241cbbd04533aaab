"""One HTTP connection from a command to a server, and the flags that say which."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from penstock import config
from penstock.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    NotReady,
    PenstockError,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
)

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str | None, typer.Option(metavar="URL", help=f"The server; else PENSTOCK_URL, else {DEFAULT_URL}.")]
ApiKey = Annotated[str | None, typer.Option(metavar="KEY", help="The API key; else PENSTOCK_API_KEY.")]
CaFile = Annotated[str | None, typer.Option("--ca-file", metavar="FILE", help="CA (PEM) that signed the server's key.")]

_ERRORS: dict[int, type[PenstockError]] = {
    400: InvalidInput, 401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 413: TooLarge, 422: InvalidInput,
    503: NotReady, 504: DeadlineExceeded,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer with a status below 400. Header names are lower case."""

    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            Internal: it is none.
        """
        try:
            return json.loads(self.body) if self.body else None
        except ValueError as error:
            raise Internal(f"the server answered with something that is no JSON: {self.body[:80]!r}") from error


@dataclass(slots=True)
class Connection:
    """A kept-alive connection to `url`. `close` ends it; a context manager closes by itself."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    timeout_s: float = 60.0
    _open: http.client.HTTPConnection | None = field(default=None, init=False)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer. `body` is bytes, or a value sent as JSON.

        Raises:
            NotReady: nothing answers at the address.
            PenstockError: the server refused; its type follows the status, its message is the server's.
        """
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = dict(headers or {})
        if self.api_key:
            sent["Authorization"] = f"Bearer {self.api_key}"
        try:
            if self._open is None:
                self._open = self._connect()
            self._open.request(method, path, body=data, headers=sent)
            response = self._open.getresponse()
            content = response.read()
        except TimeoutError as error:
            self.close()
            raise DeadlineExceeded(f"{self.url} has not answered within {self.timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise NotReady(
                f"nothing answers at {self.url} ({error or type(error).__name__}); "
                "start a server with `penstock serve`, or name another with --url"
            ) from error
        if response.status >= 400:
            raise _ERRORS.get(response.status, Internal)(_message(response.status, content))
        return Answer({name.lower(): value for name, value in response.getheaders()}, content)

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"--url is {self.url!r}; write an address such as {DEFAULT_URL}")
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout_s)
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise InvalidInput(f"--ca-file is {self.ca_file!r}: {error}") from error
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self.timeout_s, context=context)


def connect(url: str | None, api_key: str | None, ca_file: str | None = None) -> Connection:
    """A connection to what the flags, the environment or the default name."""
    environ = config.environment()
    return Connection(
        (url or environ.get("PENSTOCK_URL") or DEFAULT_URL).rstrip("/"),
        api_key or environ.get("PENSTOCK_API_KEY"),
        ca_file,
    )


def model_path(model: str) -> str:
    """The V2 path of `NAME` or `NAME@VERSION`."""
    name, _, version = model.partition("@")
    return f"/v2/models/{quote(name, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _message(status: int, content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        error = content[:200].decode(errors="replace")
    return f"the server answered {status}: {error}"
