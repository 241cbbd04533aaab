"""What a client is told once: where the server is and how to talk to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from penstock.core.errors import InvalidInput

if TYPE_CHECKING:
    import ssl

# A kept connection is not used again after this long: servers close idle ones (ours after 75 s), and a request must
# not meet the closing on its way.
IDLE_S = 30.0
# Kept connections; more may be open at once, they are closed after use.
KEPT_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Tls:
    """How to check an https server, and what to show it. Files are PEM."""

    ca_file: str | None = None  # unset: the system's authorities
    client_cert: str | None = None
    client_key: str | None = None  # unset: in the file of `client_cert`
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """A new TLS context. Raises: OSError when a file cannot be read."""
        import ssl  # takes 10 ms, which plain http need not pay

        context = ssl.create_default_context(cafile=self.ca_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, from its URL."""

    secure: bool
    host: str
    port: int
    prefix: str  # path before "/v2", without a slash at its end

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """The address that a URL names. Raises: InvalidInput."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"cannot read the URL {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"cannot read the URL {url!r}; it looks like http://127.0.0.1:8080")
    if parts.query or parts.fragment or parts.username is not None or not parts.path.isascii() or " " in parts.path:
        raise InvalidInput(f"the URL {url!r} may have a host, a port and a path only")
    secure = parts.scheme == "https"
    return Address(secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class Settings:
    """A client's settings, checked."""

    address: Address
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = 60.0
    retries: int = 2
    gzip: bool = False
    timing: bool = False
    max_response_bytes: int = 1 << 31
    tls: Tls = Tls()


def settings(
    url: str,
    api_key: str | None,
    timeout_s: float | None,
    retries: int,
    compression: str | None,
    timing: bool,
    headers: Mapping[str, str] | None,
    tls: Tls | None,
) -> Settings:
    """The settings of a client's arguments. Raises: InvalidInput."""
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidInput(f"timeout_s is {timeout_s}; it must be above 0, or None for no limit")
    if retries < 0:
        raise InvalidInput(f"retries is {retries}; it must be 0 or more")
    if compression not in (None, "gzip"):
        raise InvalidInput(f"compression is {compression!r}; it must be 'gzip' or None")
    sent = dict(headers or {})
    if api_key is not None:
        sent["Authorization"] = f"Bearer {api_key}"
    for name, value in sent.items():
        if not name.isascii() or not name.isprintable() or set(name) & set(" :") or not _header_value(value):
            raise InvalidInput(f"header {name!r} cannot be sent: a name or value holds characters that are not allowed")
    return Settings(parse_url(url), sent, timeout_s, retries, compression == "gzip", timing, tls=tls or Tls())


def _header_value(value: str) -> bool:
    return all(31 < ord(character) < 256 and ord(character) != 127 for character in value)
