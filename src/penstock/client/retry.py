"""Whether to try again, and when. Pure: time and chance are arguments."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from penstock.core.errors import PenstockError, WorkerLost

# The first wait after a refused connection; doubled each time. Long enough for a restarting server, short enough for
# a person.
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0


def wait_s(
    error: PenstockError, attempt: int, retries: int, remaining_s: float, *, sent: bool, chance: float
) -> float | None:
    """How long to wait before the next try, or None to give up and raise `error`.

    Only what cannot have had an effect is tried again: a request that was never `sent`, and one that the server refused
    and said when to come back (429 or 503 with Retry-After). Not a lost worker: it may have done its work.
    `attempt` counts from 0; `chance` (0 to 1) spreads the waits of many clients.
    """
    if attempt >= retries or isinstance(error, WorkerLost):
        return None
    if not sent:
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * (0.5 + chance / 2)
    elif error.retryable and error.retry_after_s is not None:
        wait = max(error.retry_after_s, FIRST_WAIT_S * 2**attempt) * (1 + chance / 4)
    else:
        return None
    return wait if wait < remaining_s else None


def retry_after_s(value: str, now: datetime) -> float | None:
    """The seconds that a Retry-After header means, or None when it cannot be read. Source: RFC 9110, 10.2.3."""
    text = value.strip()
    try:
        seconds = float(text)
        return seconds if 0 <= seconds < math.inf else None
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # rare, and slow to import

    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
