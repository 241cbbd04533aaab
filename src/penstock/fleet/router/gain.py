"""Whether a beginning that a replica was sent before is read faster there, as the times to the first token tell. Pure.

Not every engine keeps prompts, and few say in their answers how much of one they had. What every stream shows is when
its first token came. Where the replica had nothing else to do, that is

    a + b · tokens that are new there + c · tokens that it was believed to have

with a for what every request takes (its way, a step of writing): a match is worth 1 - c/b of what it promises. The
three are fitted by least squares, whose sums forget. Lengths that do not differ tell a and b apart by nothing, so that
what is known anyway is put beside them: a is something between nothing and the shortest time that was seen. A fit
counts where the data say what a match is worth to within `SURE`, whatever a and b each are; until then it is worth
what it was before, and all that it promises at first. A lone time that is far too long is somebody else's wait, and
left out; when such times go on they are believed. It costs the same for each time, whatever was seen before.
Source: weighted least squares; the error of c/b by the delta method.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

SURE: Final = 0.2
"""Standard error of a worth that counts."""

LEAST_SEEN: Final = 16
"""Times, before anything counts."""

LEAST_WORTH: Final = 0.1
"""Less is taken for nothing: where no cache is, a replica must not be preferred for what noise says."""

_FORGETS: Final = 1 / 40  # of the sums, with each time
_RELATIVE_TOKENS: Final = 1000.0  # longer prompts have errors that grow with them
_LEAST_NOISE: Final = 0.02  # of the times: no clock and no machine is better
_RIDGE: Final = 1e-6  # of columns of length 1
_LATE: Final = 4.0  # standard errors
_MOST_USUAL: Final = 2.0  # of what is expected, that it may be over it
_MOST_LATE: Final = 2.0  # in a row, or one in five, that are left out
_LEAST_S: Final = 1e-6


class Gain:
    """Of one revision: its replicas have the same engine."""

    __slots__ = ("_fit", "_known", "_late", "_least_s", "_new", "_noise", "_one", "_seen", "_took", "_weight", "worth")

    def __init__(self) -> None:
        self.worth = 1.0  # 0 to 1: of what a match promises, what it gives
        self._seen = 0
        self._weight = 0.0
        self._one = (0.0, 0.0, 0.0)  # products of the column of ones with itself, with new and with known tokens
        self._new = (0.0, 0.0)  # of new tokens with themselves, and with known ones
        self._known = 0.0
        self._took = (0.0, 0.0, 0.0, 0.0)  # of the times with ones, new, known tokens and themselves
        self._noise = 0.0  # variance of a time as weighted
        self._least_s = 0.0
        self._late = 0.0
        self._fit: tuple[float, float, float] | None = None

    def observe(self, tokens: float, share: float, took_s: float) -> None:
        """An idle replica's first token of a prompt came after this time; of the prompt, `share` was believed to be
        there."""
        if not (tokens > 0.0 and took_s > _LEAST_S):
            return
        known = tokens / 1000.0 * min(1.0, max(0.0, share))
        new = tokens / 1000.0 - known
        weight = (1.0 + tokens / _RELATIVE_TOKENS) ** -2.0
        if self._too_late(new, known, weight, took_s):
            return
        self._least_s = took_s if self._seen == 0 else min(took_s, self._least_s * (1.0 + _FORGETS))
        self._seen += 1
        keeps = 1.0 - _FORGETS
        self._weight = self._weight * keeps + 1.0
        ones, new_sum, known_sum = self._one
        self._one = (
            ones * keeps + weight, new_sum * keeps + weight * new, known_sum * keeps + weight * known
        )  # fmt: skip
        self._new = (self._new[0] * keeps + weight * new * new, self._new[1] * keeps + weight * new * known)
        self._known = self._known * keeps + weight * known * known
        sums = self._took
        weighted_s = weight * took_s
        self._took = (
            sums[0] * keeps + weighted_s, sums[1] * keeps + weighted_s * new, sums[2] * keeps + weighted_s * known,
            sums[3] * keeps + weighted_s * took_s,
        )  # fmt: skip
        if self._seen >= LEAST_SEEN:
            self._solve()

    def _too_late(self, new: float, known: float, weight: float, took_s: float) -> bool:
        """Whether that time is left out."""
        if self._fit is None:
            return False
        each, per_new, per_known = self._fit
        expected_s = max(0.0, each + per_new * new + per_known * known)
        usual_s = min(_LATE * sqrt(self._noise / weight), _MOST_USUAL * expected_s)  # noise has waits in it at first
        if took_s - expected_s <= max(usual_s, expected_s / 2.0):
            self._late = max(0.0, self._late - 0.25)
            return False
        if self._late > _MOST_LATE:
            return False  # it is no exception any more
        self._late += 1.0
        return True

    def _solve(self) -> None:
        ones, ones_new, ones_known = self._one
        new, new_known = self._new
        known = self._known
        took, took_new, took_known, took_took = self._took
        least_noise = _LEAST_NOISE**2 * took_took / self._weight
        middle_s = self._least_s / 2.0
        prior = max(self._noise, least_noise) / middle_s**2
        size_one, size_new, size_known = sqrt(ones + prior), sqrt(new), sqrt(known)
        if not (size_new > 0.0 and size_known > 0.0):
            return
        # Columns of length 1, whose products are then cosines; the inverse by cofactors.
        one_new, one_known = ones_new / (size_one * size_new), ones_known / (size_one * size_known)
        both, square = new_known / (size_new * size_known), 1.0 + _RIDGE
        i00, i01, i02 = (
            square * square - both * both,
            one_known * both - one_new * square,
            one_new * both - one_known * square,
        )
        i11, i12, i22 = (
            square * square - one_known * one_known,
            one_new * one_known - both * square,
            square * square - one_new * one_new,
        )
        determinant = square * i00 + one_new * i01 + one_known * i02
        if not determinant > 0.0:
            return
        y0, y1, y2 = (took + prior * middle_s) / size_one, took_new / size_new, took_known / size_known
        a = (i00 * y0 + i01 * y1 + i02 * y2) / determinant / size_one
        b = (i01 * y0 + i11 * y1 + i12 * y2) / determinant / size_new
        c = (i02 * y0 + i12 * y1 + i22 * y2) / determinant / size_known
        rest = (
            took_took - 2.0 * (a * took + b * took_new + c * took_known) + a * a * ones + b * b * new + c * c * known
            + 2.0 * (a * b * ones_new + a * c * ones_known + b * c * new_known)
        )  # fmt: skip
        self._fit = (a, b, c)
        self._noise = max(least_noise, rest / max(1.0, self._weight - 3.0))
        if not b > 0.0:
            return
        worth = min(1.0, max(0.0, 1.0 - c / b))
        left = 1.0 - worth
        variance = self._noise / determinant * (
            i22 / size_known**2 + left * left * i11 / size_new**2 - 2.0 * left * i12 / (size_known * size_new)
        )  # fmt: skip
        if variance <= (SURE * b) ** 2:
            self.worth = worth if worth >= LEAST_WORTH else 0.0
