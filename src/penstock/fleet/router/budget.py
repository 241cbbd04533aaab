"""How many retries an endpoint may make: a share of the requests of the last seconds, so that they never multiply an
overload. Pure: time is an argument."""

from __future__ import annotations

_WINDOW_S = 10
_FREE = 3  # retries in a window that are always allowed, unless the share is 0: a share of a few requests is none


class RetryBudget:
    """Counts requests and retries in buckets of one second."""

    __slots__ = ("_requests", "_retries", "_second", "requests", "retries", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.requests = 0  # in the window
        self.retries = 0
        self._requests = [0] * _WINDOW_S
        self._retries = [0] * _WINDOW_S
        self._second = 0

    def request(self, now: float) -> None:
        """Counts one request. `now` is in seconds of any clock that does not go back."""
        second = int(now)
        if second != self._second:
            self._move(second)
        self._requests[second % _WINDOW_S] += 1
        self.requests += 1

    def retry(self, now: float) -> bool:
        """Whether one more retry may be made; it is counted then."""
        second = int(now)
        if second != self._second:
            self._move(second)
        if self.share <= 0.0 or self.retries >= max(_FREE, self.share * self.requests):
            return False
        self._retries[second % _WINDOW_S] += 1
        self.retries += 1
        return True

    def _move(self, second: int) -> None:
        for passed in range(max(self._second + 1, second - _WINDOW_S + 1), second + 1):
            place = passed % _WINDOW_S
            self.requests -= self._requests[place]
            self.retries -= self._retries[place]
            self._requests[place] = self._retries[place] = 0
        self._second = max(second, self._second)
