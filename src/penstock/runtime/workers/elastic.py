"""How many worker processes a version has, between a least and a most number. Pure: what is seen in, a number out.

Theory of operation. A request that has waited `GROW_S` while every worker computes, at two looks in a row, adds a
worker, and so on once that one is there. When for `CALM_S` no look found all of them busy, as many stay as were busy at
once at most. A version that grows soon after it shrank was right before: then the time of calm doubles, up to
`LONGEST_CALM_S`, so that load near a border does not start and end a process again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOOK_S = 0.1
GROW_S = 0.1  # a start takes a fraction of a second: for shorter waits it comes too late
CALM_S, LONGEST_CALM_S = 5.0, 600.0
REGRET_S = 60.0  # a growth so soon after a shrinking takes it back


@dataclass(frozen=True, slots=True)
class Seen:
    """`size` is the wished number, `live` those that can compute, `busy` those that hold something; `waited_s` is how
    long the request has waited that waits longest, 0 with none."""

    now: float
    size: int
    live: int
    busy: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    pressed: bool = False  # the last look found a request that waited too long
    calm_since: float | None = None
    peak: int = 0  # most workers busy at once since then
    calm_s: float = CALM_S
    shrunk_at: float = float("-inf")


def decide(seen: Seen, least: int, most: int, memory: Memory) -> tuple[int, Memory]:
    """The number of workers from now on, and what to remember."""
    pressed = seen.waited_s >= GROW_S and seen.busy >= seen.live
    if pressed and memory.pressed and seen.live >= seen.size and seen.size < most:
        soon = seen.now - memory.shrunk_at < REGRET_S
        calm_s = min(2 * memory.calm_s, LONGEST_CALM_S) if soon else memory.calm_s
        return seen.size + 1, Memory(calm_s=calm_s, shrunk_at=memory.shrunk_at)
    if pressed or seen.busy >= seen.size:
        return seen.size, replace(memory, pressed=pressed, calm_since=None, peak=0)
    since = seen.now if memory.calm_since is None else memory.calm_since
    peak = max(memory.peak, seen.busy)
    if seen.now - since < memory.calm_s or seen.size <= least:
        return seen.size, replace(memory, pressed=False, calm_since=since, peak=peak)
    return max(least, peak), replace(memory, pressed=False, calm_since=None, peak=0, shrunk_at=seen.now)
