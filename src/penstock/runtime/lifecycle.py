"""Which versions to load and unload next. Pure: a snapshot in, actions out.

The rule is "availability first", as in TF Serving's AvailabilityPreservingPolicy: what serves goes on serving until
what is wished instead has answered its warm-up. So there is a moment with both in memory; a failed newcomer changes
nothing for callers, and a switch is one step.

After a switch the version before may be kept for a while, so that going back is one step too. It needs no more memory
than the switch itself did: it goes as soon as yet another version is to be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput

LOADING = "LOADING"
READY = "READY"
UNLOADING = "UNLOADING"
UNAVAILABLE = "UNAVAILABLE"  # failed to load, or unloaded


@dataclass(frozen=True, slots=True)
class Held:
    """A version that this process knows. `fingerprint` is of the files it was loaded from."""

    number: int
    state: str
    fingerprint: str
    replacing: bool = False  # its files are being loaded anew, while it serves


@dataclass(frozen=True, slots=True)
class Load:
    """Load this version; when it is READY already, replace it by what its files are now."""

    number: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Let this version finish what it holds, then free it."""

    number: int


RESTING = "not in memory; the next request loads it"
"""The reason in the index of a READY version that gave its memory back."""

Action = Load | Unload


def chosen(policy: str, available: Collection[int]) -> frozenset[int]:
    """The versions that a policy picks: `latest:N` (the N highest), `all`, or numbers `3,4` (those that exist).

    Raises:
        InvalidInput: the policy cannot be read.
    """
    text = policy.strip()
    if text == "all":
        return frozenset(available)
    if match := re.fullmatch(r"latest(?::(\d+))?", text):
        count = int(match[1] or 1)
        if count:
            return frozenset(sorted(available)[-count:])
    elif re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        return frozenset(int(number) for number in text.split(",")) & frozenset(available)
    raise InvalidInput(
        f"version policy {policy!r}: write `latest:N` with N of 1 or more, `all`, or numbers such as `3,4`"
    )


def plan(wished: Mapping[int, str], held: Collection[Held], kept: Collection[int] = ()) -> list[Action]:
    """What to do so that exactly the `wished` versions (number → fingerprint of their files) are served.

    Old versions go one by one, the oldest first, and only as many as there are wished ones that have become ready:
    while a wished version loads, or has failed, an old one stands in for it. A version that failed is tried again only
    when its files have changed. Those `kept` stay too, unless something is to be loaded.
    """
    by_number = {version.number: version for version in held}
    actions: list[Action] = []
    for number in sorted(wished, reverse=True):  # the newest first: it is what callers wait for
        version = by_number.get(number)
        if version is None:
            actions.append(Load(number))
        elif version.state in (READY, UNAVAILABLE) and version.fingerprint != wished[number] and not version.replacing:
            actions.append(Load(number))  # one load of a version at a time: two could end in the wrong order
    ready = sorted(version.number for version in held if version.state == READY)
    spare = len(ready) - len(wished)
    loading = bool(actions) or any(version.state == LOADING or version.replacing for version in held)
    staying = () if loading else kept
    actions += [Unload(n) for n in [n for n in ready if n not in wished][: max(0, spare)] if n not in staying]
    return actions


@dataclass(frozen=True, slots=True)
class Resident:
    """A version in memory. `last_used` is on any clock; one that holds a request, or moves, is `busy`."""

    key: int
    size_bytes: int
    last_used: float
    busy: bool


def to_rest(residents: Collection[Resident], needed_bytes: int, budget_bytes: int) -> list[int] | None:
    """Which versions have to give their memory back so that `needed_bytes` fit beside the others: the least recently
    used, and none more than needed. None: those that hold no request are not enough at this moment."""
    missing = needed_bytes + sum(resident.size_bytes for resident in residents) - budget_bytes
    chosen: list[Resident] = []
    for resident in sorted(residents, key=lambda one: (one.last_used, one.key)):
        if missing <= 0:
            break
        if not resident.busy and resident.size_bytes:
            chosen.append(resident)
            missing -= resident.size_bytes
    if missing > 0:
        return None
    for resident in list(reversed(chosen)):  # a large one that came late may have made an earlier one needless
        if missing + resident.size_bytes <= 0:
            chosen.remove(resident)
            missing += resident.size_bytes
    return [resident.key for resident in chosen]


def idle(residents: Collection[Resident], now: float, idle_s: float) -> list[int]:
    """The versions that nobody has used for `idle_s`."""
    return [one.key for one in residents if not one.busy and now - one.last_used >= idle_s]


def default(ready: Collection[int], wished: Collection[int]) -> int | None:
    """The version that answers when a caller names none: the highest ready and wished one, else the highest ready."""
    candidates = set(ready) & set(wished) or set(ready)
    return max(candidates, default=None)
