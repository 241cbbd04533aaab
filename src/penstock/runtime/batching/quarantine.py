"""Remembers the inputs that were in a worker when it died, so that one request cannot end worker after worker."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from penstock.core.servable import Tensors

# Enough for the requests of many crashes; beyond it the oldest are forgotten, and cost one more worker at worst.
_REMEMBERED = 1024


class Quarantine:
    """Counts worker deaths in a row by the content of the requests involved. Falsy, and free, while there were none."""

    def __init__(self, limit: int = 2) -> None:
        self.limit = limit  # deaths in a row in which the same inputs took part, until they are refused
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def add(self, inputs: Tensors) -> None:
        """Notes that a worker died while it held these inputs."""
        key = _digest(inputs)
        self._deaths[key] = self._deaths.pop(key, 0) + 1
        while len(self._deaths) > _REMEMBERED:
            self._deaths.popitem(last=False)

    def clear(self, inputs: Tensors) -> None:
        """Forgets these inputs: a worker has answered them, so the deaths were not their doing."""
        self._deaths.pop(_digest(inputs), None)

    def deaths(self, inputs: Tensors) -> int:
        """How many workers died while they held these inputs."""
        return self._deaths.get(_digest(inputs), 0)


def _digest(inputs: Tensors) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype.kind == "O":
            for item in array.ravel().tolist():
                digest.update(repr(item).encode())
        else:
            digest.update(array.tobytes())
    return digest.digest()
