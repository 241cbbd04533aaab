"""What those are told whose answers are not complete when the time of grace is over, and when they are told it."""

from __future__ import annotations

from typing import Final

from penstock.core.errors import WorkerLost

# Long enough for an error's event to be made and sent on a busy machine, and little beside a grace of seconds.
_MOST_S: Final = 0.5
_SHARE: Final = 0.1
_LEAST_S: Final = 0.05  # also where there is no grace


def last_words_s(grace_s: float) -> float:
    """How long before the end of the grace what still runs is ended, so that its callers hear of it before they are
    cut."""
    return min(_MOST_S, _SHARE * grace_s)


def cut_by(give_up: float, now: float) -> float:
    """How long to wait for the last words to be taken."""
    return max(_LEAST_S, give_up - now)


def out_of_grace(grace_s: float) -> WorkerLost:
    """The error. Not NotReady, which would say that the model has not seen the request: it may be computing it."""
    return WorkerLost(
        f"the server is stopping, and this was not complete within its time of grace (grace_s = {grace_s:g})"
    )
