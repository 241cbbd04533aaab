"""API keys. They are checked below routing: what is not marked public needs one, and so does what does not exist."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from penstock.core.errors import InvalidInput


class ApiKeys:
    """The keys a listener accepts, each with its caller's name. With none, everybody is let in, as nobody."""

    __slots__ = ("_digests", "required")

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        """
        Raises:
            InvalidInput: a key is empty or holds characters that no header can carry.
        """
        digests = []
        for key, name in keys:
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise InvalidInput("an API key must be printable ASCII without spaces around it, and not empty")
            digests.append((_digest(key.encode()), name))
        self._digests = tuple(digests)
        self.required = bool(digests)

    def caller(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Whose key `Authorization: Bearer KEY` or `X-API-Key: KEY` carries; None when it is none of the keys.

        Digests are compared, each with every key, so the time taken tells neither a key's length nor its beginning.
        """
        if not self.required:
            return ""
        authorization = headers.get(b"authorization")
        if authorization is not None:
            scheme, _, presented = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                return None
            return self._known(presented.strip())
        key = headers.get(b"x-api-key")
        return None if key is None else self._known(key)

    def knows(self, key: str) -> bool:
        """Whether `key` is one of the keys; for listeners whose headers are text."""
        return self._known(key.encode("utf-8", "replace")) is not None

    def _known(self, presented: bytes) -> str | None:
        digest = _digest(presented)
        found = None
        for known, name in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
