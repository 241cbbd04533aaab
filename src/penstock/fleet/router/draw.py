"""Which arm a request gets. Pure: the caller brings the uniform number, or the user's key."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from penstock.fleet.routes import Arm

_TOP = 1.0 / (1 << 53)


def draw(arms: Sequence[Arm], number: float) -> int:
    """The index of an arm, each with a chance of its weight. `number` is uniform in [0, 1).

    Raises:
        ValueError: no arm has a weight above 0.
    """
    total = sum(arm.weight for arm in arms)
    threshold = number * total
    reached, last = 0.0, -1
    for index, arm in enumerate(arms):
        if arm.weight > 0.0:
            reached += arm.weight
            last = index
            if threshold < reached:
                return index
    if last < 0:
        raise ValueError("no arm has a weight above 0")
    return last  # the sum of the weights was rounded


def stick(arms: Sequence[Arm], key: bytes) -> int:
    """The index of the arm of a user, each with a chance of its weight, always the same for the same key and weights.

    A user moves only when it must: when weights change, only to arms that gained in proportion to the one it leaves;
    when an arm goes, only its own users move. `key` holds what tells experiments of different endpoints apart, too.

    Weighted rendezvous hashing: each arm gets the score -ln(u) / weight with u uniform from hash(key, revision), and
    the least score wins. The scores are exponential with rate `weight`, and the least of them is arm i's with
    probability weight_i / sum.
    Source: Schindelhauer, Schomaker: "Weighted Distributed Hash Tables", SPAA 2005 (the logarithmic method).

    Raises:
        ValueError: no arm has a weight above 0.
    """
    best, least = -1, math.inf
    for index, arm in enumerate(arms):
        if arm.weight > 0.0:
            score = -math.log(_uniform(key, b"%d" % arm.revision)) / arm.weight
            if score < least:
                best, least = index, score
    if best < 0:
        raise ValueError("no arm has a weight above 0")
    return best


def rank(ids: Sequence[str], key: bytes) -> list[int]:
    """Indices of `ids` in the order in which a session with this key prefers them (rendezvous hashing): when one goes,
    its sessions move and no others do.

    Source: Thaler, Ravishankar: "A name-based mapping scheme for rendezvous", University of Michigan, 1996.
    """
    return sorted(range(len(ids)), key=lambda index: (_uniform(key, ids[index].encode()), ids[index]))


def _uniform(key: bytes, name: bytes) -> float:
    """In (0, 1), of 53 bits."""
    digest = hashlib.blake2b(key, digest_size=8, salt=hashlib.blake2b(name, digest_size=16).digest()).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) * _TOP
