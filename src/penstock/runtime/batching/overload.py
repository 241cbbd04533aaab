"""What a batch costs, when a request will be answered, and when a queue is not a burst but an overload. Pure.

Theory of operation. Two questions are asked before a request may wait.

*Can its deadline be met?* `Cost` learns from the batches that ran how their time depends on their rows: a line through
them, the older ones fading. A batch of 32 rows may take as long as one of 1 (a GPU, a lookup) or 32 times as long (a
loop); an average time per row would be wrong by up to 32 times as soon as the load changes. What was never seen is
judged kindly: a wrong refusal cannot be repaired, a wrong admission is found out by the next batch.

*Does the queue only grow?* A burst fills a queue too, and so do callers who each wait for their answer: both end, or
stay as they are, and waiting is right. Under an overload the queue grows until it is full, and then everybody waits for
as long as a full queue lasts; the work done is the same. `Standing` looks at the least length of the queue in each
window of time (as CoDel does with the least delay): while that is small, or does not grow, nothing is refused. When it
grows window after window, the queue is held at what keeps the workers busy, until a window passes without a refusal;
and of those who came before that was known, the last ones are refused, too, if they would wait for long.
Sources: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012; the figures are from our own
tests/chaos/test_overload.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

# The weight of a batch fades by this much with each later one: a model's change of speed is learnt in about ten.
_FADE = 0.85
# Sizes that differ by less than this share of their mean tell nothing about a slope.
_ALIKE = 0.1

# Rows that may wait for one slot while the queue is held short: two full batches, so that the next one is whole when
# the slot is free; and some single requests at least, whose arrivals are uneven.
_KEPT_BATCHES, _KEPT_ROWS = 2, 6
# Windows in a row in which the queue must grow, and by which part, before it counts as an overload. Callers who come
# one after the other and then wait for their answers make it grow, too, but not for so long.
_GROWING, _GROWTH = 3, 1.25
# A queue that grows with breaks is found by its having doubled in so many windows.
_SLOWLY, _DOUBLED = 10, 2.0
WINDOW_S = 0.1
# What waits when an overload is found may take so long to work off. Less would refuse what is nearly answered; more,
# and newcomers would find nothing but a long queue.
_BACKLOG_S = 0.5
_WINDOW_BATCHES = 2.0  # a window is no shorter than so many batches take, or every queue would seem to grow


@dataclass(frozen=True, slots=True)
class Cost:
    """Fading sums over batches: their weights, rows and seconds."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0

    def learn(self, rows: int, seconds: float) -> Cost:
        """With one more batch."""
        return Cost(
            self.weight * _FADE + 1.0,
            self.rows * _FADE + rows,
            self.seconds * _FADE + seconds,
            self.rows_rows * _FADE + rows * rows,
            self.rows_seconds * _FADE + rows * seconds,
        )

    def of(self, rows: float) -> float:
        """The expected seconds of a batch of so many rows; 0 while none has run."""
        if self.weight == 0.0:
            return 0.0
        mean_rows, mean_s = self.rows / self.weight, self.seconds / self.weight
        spread = self.rows_rows / self.weight - mean_rows * mean_rows
        if spread <= (_ALIKE * mean_rows) ** 2:
            return mean_s
        together = self.rows_seconds / self.weight - mean_rows * mean_s
        slope = min(max(0.0, together / spread), mean_s / mean_rows)  # between "always the same" and "all by its rows"
        return max(0.0, mean_s + slope * (rows - mean_rows))


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is before a request: `rows` of `requests` in the queue, and batches that run: `slots` of them at once at
    most, which need `running_s` more all together. Joined batches hold up to `most_rows`, others are one request."""

    rows: int
    requests: int
    slots: int
    running_s: float
    most_rows: int
    joined: bool


def answer_s(cost: Cost, ahead: Ahead, rows: int) -> tuple[float, float]:
    """How long a request of `rows` will wait until its batch begins, and until it is answered."""
    if ahead.joined:
        whole, rest = divmod(ahead.rows, ahead.most_rows)  # it joins the last batch, the one that is not full
        before_s, own_s = whole * cost.of(ahead.most_rows), cost.of(min(rest + rows, ahead.most_rows))
    else:
        before_s = ahead.requests * cost.of(ahead.rows / ahead.requests) if ahead.requests else 0.0
        own_s = cost.of(rows)
    wait_s = (ahead.running_s + before_s) / max(1, ahead.slots)
    return wait_s, wait_s + own_s


def kept_rows(slots: int, most_rows: int) -> int:
    """The rows that may wait while an overload lasts."""
    return max(1, slots) * max(_KEPT_ROWS, _KEPT_BATCHES * most_rows)


def backlog_rows(cost: Cost, slots: int, most_rows: int, mean_rows: float) -> int:
    """The rows of those who wait already that are answered though an overload is found. `mean_rows` of a batch that is
    one request; joined ones are full."""
    batch_rows = max(float(most_rows), mean_rows)
    batches = max(1, slots) * _BACKLOG_S / cost.of(batch_rows) if cost.of(batch_rows) > 0 else 0.0
    return max(kept_rows(slots, most_rows), int(batches * batch_rows))


def window_s(batch_s: float) -> float:
    """How long to watch a queue whose full batch takes `batch_s`, before judging it."""
    return max(WINDOW_S, _WINDOW_BATCHES * batch_s)


@dataclass(frozen=True, slots=True)
class Standing:
    """A queue that stands: its least length in the last window, and in the shortest since it stands; for how many
    windows it stands and how many of the last ones in a row it grew; whether it is held short now."""

    last: int = 0
    least: int = 0
    windows: int = 0
    grown: int = 0
    held: bool = False

    def after(self, low: int, kept: int, refused: int) -> Standing:
        """The judgement after one more window, in which the queue never had fewer than `low` rows and `refused`
        requests were turned away because it is held short. `kept` is what `kept_rows` says."""
        if self.held:
            return self if refused else Standing()
        if low <= kept:
            return Standing()
        least = min(self.least, low) if self.windows else low
        grown = self.grown + 1 if self.windows and low > self.last else 0
        held = (grown >= _GROWING and low >= _GROWTH * least) or (
            grown > 0 and self.windows >= _SLOWLY and low >= _DOUBLED * least
        )
        return Standing(low, least, self.windows + 1, grown, held)


def retry_after_s(seconds: float) -> int:
    """When to come back, in the whole seconds that the wire knows."""
    return max(1, ceil(seconds))
