"""When to close a batch, how large it may be, what it is padded to. Pure: no clock, no I/O, no state.

Batching is pull, not push: a batch closes because a worker is free, not because a timer rings. Load then grows the
batch by itself, and a lone request on an idle server waits for nothing. A delay is only for models whose owners ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

# Why a batch was released: the values of the metric's `release` label.
FULL = "full"  # it held all the rows it may
IDLE = "idle"  # a worker was free, and no delay was asked for
DELAY = "delay"  # the delay asked for was over
SINGLE = "single"  # the request may not be joined (model, stream, or a retry on its own)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may be. `sizes` ascending; when given, a batch is padded up to one of them. Without `join` a batch
    is one request, whose own rows may still be as many as `max_rows`."""

    max_rows: int
    delay_s: float = 0.0
    sizes: tuple[int, ...] = ()
    join: bool = True

    @property
    def most_rows(self) -> int:
        """The rows that a joined batch may hold at most."""
        return min(self.max_rows, self.sizes[-1]) if self.sizes else self.max_rows


def release(rows: int, oldest_wait_s: float, limits: BatchLimits) -> str:
    """Why a batch of the waiting `rows` should go to a free worker now, or "" when it should wait for more."""
    if rows >= limits.most_rows:
        return FULL
    if limits.delay_s <= 0 or not limits.join:
        return IDLE
    return DELAY if oldest_wait_s >= limits.delay_s else ""


def share(rows: int, free_workers: int, limits: BatchLimits) -> int:
    """How many of the waiting `rows` one of several free workers should take: an even part, so that none stays idle
    while another works through everything."""
    return max(1, min(limits.most_rows, ceil(rows / max(1, free_workers))))


def padding(rows: int, sizes: Sequence[int]) -> int:
    """How many rows to add so that the batch has an allowed size; 0 when none is large enough or none is asked for."""
    for size in sizes:
        if size >= rows:
            return size - rows
    return 0


def worth_joining(seconds_for_one: float, seconds_for_many: float, many: int) -> bool:
    """Whether joining `many` single rows saves at least a tenth of the compute time. Where it does not (a convolution
    that fills its cores with one image), joined rows would only wait for each other."""
    return seconds_for_many < 0.9 * many * seconds_for_one


def may_borrow(busy_workers: int, waiting: int) -> bool:
    """Whether a batch that is dispatched now may compute with every core: no worker of any model computes, and nobody
    waits who would take another worker. Under load each worker keeps to its own threads, so that none disturbs another;
    a lone request gets the whole machine."""
    return busy_workers == 0 and waiting == 0
