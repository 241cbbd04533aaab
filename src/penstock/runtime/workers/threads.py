"""How many compute threads each worker gets. Pure."""

from __future__ import annotations

# Beyond this one request of an ordinary model gains little from more threads, and they all wake for each layer.
_ENOUGH = 8


def thread_plan(cores: int, workers: int, threads: int | None = None, borrow: bool = True) -> tuple[int, int]:
    """The threads of each of `workers` workers on `cores` cores: its own, and those it may borrow.

    The own threads of all workers together fill the cores once. Borrowed ones compute only in batches that run while
    no other worker does: a lone request may then use the whole machine. An explicit `threads` is taken as it is, and
    nothing is borrowed: someone has measured.
    """
    if threads is not None:
        return max(1, threads), 0
    own = max(1, cores // max(1, workers))
    if not borrow or own >= cores:
        return own, 0
    return own, min(cores - own, max(own, _ENOUGH - own))
