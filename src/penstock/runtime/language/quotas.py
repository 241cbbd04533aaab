"""How many requests and tokens each caller may still use. Pure but for what it keeps: time is an argument.

A request's tokens are reserved before it begins (its prompt, and what it may generate), and settled when it ends: what
it did not use is given back. Rates are token buckets that hold one minute's allowance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import QuotaExceeded
from penstock.runtime.keys import KeyLimits

_MINUTE_S, _DAY_S = 60.0, 86_400.0


@dataclass(slots=True)
class _Bucket:
    """So much may be used now; it fills up to `most` within a minute. Below 0 after more was used than reserved."""

    most: int
    level: float
    at: float

    def wait_s(self, amount: float, now: float) -> float:
        """How long it takes until `amount` may be used; 0 is now. What is more than `most` needs a full bucket."""
        self.level = min(float(self.most), self.level + max(now - self.at, 0.0) * self.most / _MINUTE_S)
        self.at = now
        return max(min(amount, self.most) - self.level, 0.0) * _MINUTE_S / self.most


@dataclass(slots=True)
class _Account:
    limits: KeyLimits
    requests: _Bucket | None
    tokens: _Bucket | None
    day: int = -1
    used_today: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a request may use. `settle` ends it."""

    caller: str
    tokens: int
    day: int


class Quotas:
    """The accounts of callers with limits; others are let through."""

    def __init__(self, limits: Mapping[str, KeyLimits], now: float) -> None:
        self._began = now
        self._accounts = {
            name: _Account(
                one,
                None if one.requests_per_minute is None else _bucket(one.requests_per_minute, now),
                None if one.tokens_per_minute is None else _bucket(one.tokens_per_minute, now),
            )
            for name, one in limits.items()
        }

    def weight(self, caller: str) -> float:
        """The caller's share beside the others'."""
        account = self._accounts.get(caller)
        return 1.0 if account is None else account.limits.weight

    def reserve(self, caller: str, tokens: int, now: float, *, requests: int = 1) -> Reservation | None:
        """Takes `tokens` and `requests` out of the caller's allowance; None for a caller without limits.

        Raises:
            QuotaExceeded: it is used up; when it will be enough again is `retry_after_s`. Nothing was taken.
        """
        account = self._accounts.get(caller)
        if account is None:
            return None
        limits = account.limits
        if limits.max_running is not None and account.running >= limits.max_running:
            raise QuotaExceeded(
                f"{caller!r} has {account.running} sequences running, and max_running is {limits.max_running}",
                retry_after_s=1.0,
            )
        wait_s = account.requests.wait_s(requests, now) if account.requests and requests else 0.0
        if wait_s > 0.0:
            raise QuotaExceeded(
                f"{caller!r} may make {limits.requests_per_minute} requests a minute", retry_after_s=wait_s
            )
        wait_s = account.tokens.wait_s(tokens, now) if account.tokens else 0.0
        if wait_s > 0.0:
            raise QuotaExceeded(
                f"{caller!r} may use {limits.tokens_per_minute} tokens a minute; this request needs up to {tokens}",
                retry_after_s=wait_s,
            )
        self._check_day(account, caller, tokens, now)
        if account.requests:
            account.requests.level -= requests
        if account.tokens:
            account.tokens.level -= tokens
        account.used_today += tokens
        account.running += 1
        return Reservation(caller, tokens, account.day)

    def settle(self, reservation: Reservation | None, used: int) -> None:
        """The request has ended, and used so many tokens. To be called once."""
        if reservation is None:
            return
        account = self._accounts[reservation.caller]
        account.running -= 1
        back = reservation.tokens - used
        if account.tokens:
            account.tokens.level = min(account.tokens.level + back, float(account.tokens.most))
        if account.day == reservation.day:
            account.used_today -= back

    def _check_day(self, account: _Account, caller: str, tokens: int, now: float) -> None:
        day, into = divmod(now - self._began, _DAY_S)
        if account.day != int(day):
            account.day, account.used_today = int(day), 0
        most = account.limits.tokens_per_day
        if most is not None and account.used_today + tokens > most:
            raise QuotaExceeded(
                f"{caller!r} may use {most} tokens a day and has used {account.used_today}; this request needs up to "
                f"{tokens}",
                retry_after_s=_DAY_S - into,
            )


def _bucket(most: int, now: float) -> _Bucket:
    return _Bucket(most, float(most), now)
