"""How many tokens of language models one tenant may use: a rate per minute, and a number per day. Pure.

What a request will take is only known at its end. So its prompt and what it will probably write are reserved when it
comes, and put right when it is over: unused room goes back, and what was over is owed, which the next requests wait
for.
Requests that are on their way together so cannot take much more than there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from penstock.core.errors import QuotaExceeded

DAY_S: Final = 86400.0
MINUTE_S: Final = 60.0
_SOON_S = 5.0


@dataclass(slots=True)
class TokenAccount:
    """Of one tenant, in one router. `left` are of the minute's bucket, as of `at`; None: it was not touched yet."""

    left: float | None = None
    at: float = 0.0
    day: int = -1  # counted from the epoch
    used: float = 0.0  # of that day, in this router
    reserved: float = 0.0  # of requests on their way
    exhausted_until: float = 0.0  # as all routers together found
    unreported: float = 0.0

    def reserve(
        self, name: str, per_minute: int | None, per_day: int | None, share: float, tokens: float, now: float
    ) -> float:
        """Takes what a request will probably use, and gives what was taken. `share`: of the rate, this router's.

        Raises:
            QuotaExceeded: it does not fit; `retry_after_s` says when it will.
        """
        if per_day is not None:
            self._check_day(name, per_day, now)
        if per_minute is not None:
            tokens = min(tokens, float(per_minute))  # what is over could never come; it is owed when it was used
            left = self._refill(per_minute, share, now)
            if left < tokens:
                rate = per_minute * share / MINUTE_S
                wait_s = (tokens - left) / rate if rate > 0 else MINUTE_S
                raise QuotaExceeded(
                    f"tenant {name} may use {per_minute:,} tokens per minute; {max(0, int(left)):,} are left, and this "
                    f"request may take {tokens:,.0f}",
                    retry_after_s=min(wait_s, 3600.0),
                )
            self.left = left - tokens
        self.reserved += tokens
        return tokens

    def settle(self, reserved: float, used: float, per_minute: int | None, now: float) -> None:
        """The request is over, and took that many."""
        self.reserved = max(0.0, self.reserved - reserved)
        if self.left is not None and per_minute is not None:
            self.left = min(float(per_minute), self.left + reserved - used)
        self._turn(now)
        self.used += used
        self.unreported += used

    def _refill(self, per_minute: int, share: float, now: float) -> float:
        """Token bucket of one minute's room. Source: RFC 2697, section 3, of one rate."""
        if self.left is None:
            self.left, self.at = float(per_minute), now
        passed_s, self.at = now - self.at, now
        if passed_s > 0:
            self.left += passed_s * per_minute * share / MINUTE_S
        self.left = min(self.left, float(per_minute))
        return self.left

    def _check_day(self, name: str, per_day: int, now: float) -> None:
        """What this router alone counted is enough to refuse, also while the controller is dead."""
        self._turn(now)
        until = self.exhausted_until
        if self.used >= per_day:
            until = max(until, (self.day + 1) * DAY_S)
        elif self.used + self.reserved >= per_day:
            until = max(until, now + _SOON_S)  # those on their way may take less than was reserved
        if until > now:
            raise QuotaExceeded(
                f"tenant {name} may use {per_day:,} tokens per day; {self.used:,.0f} were used here, and "
                f"{self.reserved:,.0f} may be by requests on their way",
                retry_after_s=min(until - now, DAY_S),
            )

    def _turn(self, now: float) -> None:
        day = int(now // DAY_S)
        if day != self.day:
            self.day, self.used = day, 0.0
