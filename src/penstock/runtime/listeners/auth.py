"""API keys. They are checked below routing: what is not marked public needs one, and so does what does not exist."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from penstock.core.errors import InvalidInput


class ApiKeys:
    """The keys a listener accepts. With none, everybody is let in."""

    __slots__ = ("_digests", "required")

    def __init__(self, keys: Iterable[str]) -> None:
        """
        Raises:
            InvalidInput: a key is empty or holds characters that no header can carry.
        """
        digests = []
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise InvalidInput("an API key must be printable ASCII without spaces around it, and not empty")
            digests.append(_digest(key.encode()))
        self._digests = tuple(digests)
        self.required = bool(digests)

    def allows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether `Authorization: Bearer KEY` or `X-API-Key: KEY` carries one of the keys.

        Digests are compared, each with every key, so the time taken tells neither a key's length nor its beginning.
        """
        if not self.required:
            return True
        authorization = headers.get(b"authorization")
        if authorization is not None:
            scheme, _, presented = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                return False
            return self._known(presented.strip())
        key = headers.get(b"x-api-key")
        return key is not None and self._known(key)

    def knows(self, key: str) -> bool:
        """Whether `key` is one of the keys; for listeners whose headers are text."""
        return self._known(key.encode("utf-8", "replace"))

    def _known(self, presented: bytes) -> bool:
        digest = _digest(presented)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
