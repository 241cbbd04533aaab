"""Remembers the inputs that were in a worker when it died, so that one request cannot end worker after worker.

Theory of operation. Inputs that took part in a death are suspects: they run in batches of their own, so that they can
take no others along. A second death convicts them, unless both times another one may be to blame: the worker was at
other batches too (asyncio workers), or was killed by somebody. Then it takes four. Convicts are refused for a minute.
After that one request with these inputs is let in on trial; another death doubles the time, up to an hour. An answer,
or two hours without a death, clears everything: whoever killed the workers, it was not these inputs.

Remembering costs the others next to nothing: their contents are hashed only when shape and beginning are a suspect's.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.servable import Tensors

FREE, ALONE, REFUSED = "free", "alone", "refused"  # what `judge` says

# Enough for the requests of many crashes; beyond it the oldest are forgotten, and cost one more worker at worst.
_REMEMBERED = 1024
_FIRST_REFUSAL_S, _LONGEST_REFUSAL_S = 60.0, 3600.0
_FORGOTTEN_S = 7200.0
_MARK_ITEMS = 8


@dataclass(slots=True)
class _Suspect:
    mark: int
    deaths: int = 0
    deaths_alone: int = 0
    last_death: float = 0.0
    refused_until: float = 0.0


class Quarantine:
    """Counts worker deaths in a row by the content of the requests involved. Falsy, and free, while there were none."""

    def __init__(self, limit: int = 2) -> None:
        self.limit = limit  # deaths in a row in which the same inputs took part, until they are refused
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()  # the latest death last
        self._marks: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._suspects)

    def __len__(self) -> int:
        return len(self._suspects)

    def add(self, held: Sequence[Tensors], now: float, *, alone: bool) -> None:
        """Notes that a worker died while it held these inputs; `alone`: and nothing else. Equal ones took part once,
        also those of its other batches: `now` is the moment of the death, and tells one from another."""
        distinct = {_digest(inputs): inputs for inputs in held}
        for key, inputs in distinct.items():
            self._add(key, inputs, now, alone=alone and len(distinct) == 1)

    def _add(self, key: bytes, inputs: Tensors, now: float, *, alone: bool) -> None:
        known = self._suspects.get(key)
        if known is not None and known.last_death == now:
            return
        suspect = self._drop(key) or _Suspect(_mark(inputs))
        suspect.deaths += 1
        suspect.deaths_alone += alone
        suspect.last_death = now
        if self._convicted(suspect):
            doubled_s = _FIRST_REFUSAL_S * 2.0 ** min(suspect.deaths - self.limit, 10)
            suspect.refused_until = now + min(_LONGEST_REFUSAL_S, doubled_s)
        self._suspects[key] = suspect
        self._marks[suspect.mark] += 1
        while len(self._suspects) > _REMEMBERED or self._oldest_is_forgotten(now):
            self._drop(next(iter(self._suspects)))

    def judge(self, inputs: Tensors, now: float) -> tuple[str, int, float]:
        """Whether a request may run, the deaths that its inputs took part in, and for how many seconds it is refused.

        A trial that is granted here is the only one for a while, so that a crowd of equal requests ends one worker."""
        while self._oldest_is_forgotten(now):
            self._drop(next(iter(self._suspects)))
        suspect = self._find(inputs)
        if suspect is None:
            return FREE, 0, 0.0
        if not self._convicted(suspect):
            return ALONE, suspect.deaths, 0.0
        if now < suspect.refused_until:
            return REFUSED, suspect.deaths, suspect.refused_until - now
        suspect.refused_until = now + _FIRST_REFUSAL_S
        return ALONE, suspect.deaths, 0.0

    def clear(self, inputs: Tensors) -> None:
        """Forgets these inputs: a worker has answered them, so the deaths were not their doing."""
        if self._find(inputs) is not None:
            self._drop(_digest(inputs))

    def _find(self, inputs: Tensors) -> _Suspect | None:
        return self._suspects.get(_digest(inputs)) if self._marks[_mark(inputs)] else None

    def _convicted(self, suspect: _Suspect) -> bool:
        return suspect.deaths >= (self.limit if suspect.deaths_alone else 2 * self.limit)

    def _oldest_is_forgotten(self, now: float) -> bool:
        return bool(self._suspects) and now - next(iter(self._suspects.values())).last_death > _FORGOTTEN_S

    def _drop(self, key: bytes) -> _Suspect | None:
        suspect = self._suspects.pop(key, None)
        if suspect is not None:
            self._marks[suspect.mark] -= 1
            if not self._marks[suspect.mark]:
                del self._marks[suspect.mark]
        return suspect


def _mark(inputs: Tensors) -> int:
    """The same for the same inputs, and cheap; not much more."""
    marks: list[object] = []
    for name in sorted(inputs):
        array = inputs[name]
        first = array.flat[:_MARK_ITEMS]
        marks += (name, array.dtype.str, array.shape)
        marks.append(repr(first.tolist()) if array.dtype.kind == "O" else first.tobytes())
    return hash(tuple(marks))


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
