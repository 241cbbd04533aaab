"""The TLS context of a listener, with errors that name the file at fault."""

from __future__ import annotations

import ssl
from pathlib import Path

from penstock.core.errors import InvalidInput


def tls_context(cert: str, key: str, client_ca: str | None = None) -> ssl.SSLContext:
    """A server context for TLS 1.2 and later; with `client_ca`, only clients with a certificate from it get in.

    Raises:
        InvalidInput: a file is missing, unreadable, not PEM, encrypted, or the key is not the certificate's.
    """
    for role, path in (("certificate", cert), ("key", key), ("client CA", client_ca)):
        if path is not None:
            _readable(role, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _Encrypted:
        raise InvalidInput(f"TLS key {key} is encrypted; give one without a password") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInput(f"TLS key {key} does not belong to certificate {cert}") from error
        raise InvalidInput(f"{_culprit(cert, key)} is not usable PEM: {error.reason or error}") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=client_ca)
        except ssl.SSLError as error:
            raise InvalidInput(
                f"TLS client CA {client_ca} holds no usable certificate: {error.reason or error}"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Encrypted(Exception):
    """The key asks for a password; nobody is there to type it."""


def _no_password() -> str:
    raise _Encrypted


def _readable(role: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InvalidInput(f"cannot read the TLS {role} {path}: {error.strerror}") from error


def _culprit(cert: str, key: str) -> str:
    """OpenSSL does not say which of the two files failed: the one that holds no block of its kind."""
    if b"-----BEGIN CERTIFICATE" not in Path(cert).read_bytes():
        return f"TLS certificate {cert}"
    if b"PRIVATE KEY-----" not in Path(key).read_bytes():
        return f"TLS key {key}"
    return f"TLS certificate {cert} or key {key}"
