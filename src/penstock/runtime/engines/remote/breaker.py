"""Whether an upstream is worth asking: after failures in a row, or told to come again later, it is left alone a while.

Closed: asked. Open until a time: not asked. After that time one request may try; its success closes it, its failure
opens it again. Times are given, in monotonic seconds.
"""

from __future__ import annotations

_FAILURES = 5  # in a row
_COOL_S = 10.0
_LONGEST_S = 300.0  # what an upstream may ask for with Retry-After


class Breaker:
    """Of one upstream."""

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0
        self._trying = False

    def admits(self, now: float) -> bool:
        """Whether a request may go there now. One that does owes `succeeded`, `failed` or `left`."""
        if now < self._open_until or self._trying:
            return False
        self._trying = self._failures >= _FAILURES
        return True

    def wait_s(self, now: float) -> float:
        """Until it may be asked again."""
        return max(self._open_until - now, 0.0)

    def succeeded(self) -> None:
        """It has begun to answer."""
        self._failures, self._open_until, self._trying = 0, 0.0, False

    def failed(self, now: float, retry_after_s: float | None) -> None:
        """It has refused or failed; `retry_after_s` is what it asked for."""
        self._failures += 1
        self._trying = False
        if retry_after_s is not None:
            self._open_until = now + min(retry_after_s, _LONGEST_S)
        elif self._failures >= _FAILURES:
            self._open_until = now + _COOL_S

    def left(self) -> None:
        """The request was the caller's fault, or given up: nothing is known of the upstream."""
        self._trying = False
