"""Grows while requests wait too long for a replica; for models of which nobody knows how much one replica carries.

Theory of operation. The wait is the 95th percentile that routers measured, or what Little's law makes of those that
are held. It is too long when it exceeds twice `goal_s` two seconds in a row, or `goal_s` in half of the last ten. Then
the size is multiplied by `growth`, or by more when the backlog shows how much less is served than comes; once per
`settle_s` and only when what was wished before is ready. Every such time
teaches something: at this rate so many replicas were too few. Shrinking is slow: one step of at most a tenth per
`calm_s` without a wait above half the goal, and never to a size of which a replica would have to carry more than
`trust` times what was once too much for one. A growth soon after a shrinking makes the next wait for calm four times
longer. So under constant load it comes to rest, instead of trying again and again how few replicas are too few. What
was learned is forgotten after `forget_s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from penstock.fleet.policy_options import option, read
from penstock.fleet.scaling import Load, Size

RATE_WINDOW_S = 60.0
LASTING = 10  # seconds looked at for a wait that lasts
MOST_GROWTH = 10
REGRET_S = 900.0  # a growth so soon after a shrinking takes it back


@dataclass(frozen=True, slots=True)
class Options:
    goal_s: float = option(
        0.1, "Wait for a replica, 95th percentile, above which it grows.", unit="s", minimum=0.001, maximum=3600
    )
    growth: float = option(1.5, "Factor of one growth; at least one replica is added.", minimum=1.01, maximum=10)
    settle_s: float = option(
        10.0, "Time between two growths, for what waited before the first to be answered.",
        unit="s", minimum=1, maximum=3600,
    )  # fmt: skip
    start_s: float = option(
        60.0, "Time after which replicas that are still not ready are no reason to wait before growing again.",
        unit="s", minimum=1, maximum=3600,
    )  # fmt: skip
    calm_s: float = option(60.0, "Time without waiting before each shrinking.", unit="s", minimum=1, maximum=3600)
    trust: float = option(
        0.8, "Share of what was too much for one replica that one is trusted with when shrinking.",
        minimum=0.1, maximum=1,
    )  # fmt: skip
    forget_s: float = option(
        3600.0, "Time after which what was too much is tried again.", unit="s", minimum=60, maximum=604_800
    )


class QueueWait:
    name = "queue_wait"

    def options(self, given: Mapping[str, object]) -> Options:
        return read(Options, given, f"scaling {self.name}")

    def size(self, options: Options, load: Load) -> Size:
        before = load.wished or load.ready
        if not load.samples:
            return Size(before, "no samples: what there is stays", load.memory)
        rate = _average_rate(load)
        waits = [max(s.queue_wait_s, s.waiting / max(rate, 1.0)) for s in load.samples[-LASTING:]]
        memory = dict(load.memory)
        if "learned_at" in memory and load.now - _number(memory, "learned_at") >= options.forget_s:
            for learned in ("limit", "learned_at", "patience"):
                memory.pop(learned, None)
        last = load.samples[-1]
        if before == 0:
            demand = last.waiting > 0 or last.concurrency > 0 or last.requests_per_s > 0
            memory |= {"calm_since": load.now} if demand else {}
            return Size(int(demand), "requests arrive at zero" if demand else "nothing arrives", memory)
        acute = len(waits) >= 2 and min(waits[-2:]) > 2 * options.goal_s
        if acute or sum(wait > options.goal_s for wait in waits) * 2 >= LASTING:
            return self._grow(options, load, before, rate, waits, memory)
        if max(waits[-2:]) > options.goal_s / 2:
            memory["calm_since"] = load.now
        return self._shrink(options, load, before, rate, memory)

    def _grow(
        self, options: Options, load: Load, before: int, rate: float, waits: list[float], memory: dict[str, object]
    ) -> Size:
        memory["calm_since"] = load.now
        reason = f"wait {waits[-1]:.3g} s, goal {options.goal_s:g} s"
        since = load.now - _number(memory, "grown_at", -math.inf)
        if since < options.settle_s or (load.ready < before and since < options.start_s):
            return Size(before, f"{reason}; grew {since:.0f} s ago", memory)
        if load.ready and rate:
            limit = rate / load.ready
            memory |= {"limit": min(limit, _number(memory, "limit", math.inf)), "learned_at": load.now}
        if load.now - _number(memory, "shrunk_at", -math.inf) < REGRET_S:
            memory |= {"patience": min(_number(memory, "patience", 1.0) * 4, 64.0), "learned_at": load.now}
        memory["grown_at"] = load.now
        wished = max(before + 1, math.floor(before * options.growth), min(_needed(options, load), before * MOST_GROWTH))
        return Size(wished, reason, memory)

    def _shrink(self, options: Options, load: Load, before: int, rate: float, memory: dict[str, object]) -> Size:
        calm = load.now - _number(memory, "calm_since", load.samples[0].at)
        if calm < options.calm_s * _number(memory, "patience", 1.0):
            return Size(before, f"no wait for {calm:.0f} s", memory)
        fewer = before - max(1, before // 10)
        busy = rate > 0 or load.samples[-1].concurrency > 0
        if busy:
            limit = _number(memory, "limit", math.inf)
            fewer = max(fewer, 1, math.ceil(rate / (limit * options.trust)) if limit < math.inf else 1)
        if fewer >= before:
            return Size(before, f"no wait; {rate:.3g} requests/s need {before}, as was learned", memory)
        memory |= {"calm_since": load.now, "shrunk_at": load.now}
        return Size(fewer, f"no wait for {calm:.0f} s at {rate:.3g} requests/s", memory)


def _needed(options: Options, load: Load) -> int:
    """Replicas for what arrives, when a backlog shows what those that are ready serve; 0 when nothing shows it."""
    last = load.samples[-3:]
    if load.ready == 0 or len(last) < 2 or any(sample.waiting == 0 for sample in last):
        return 0
    arrived = sum(sample.requests_per_s for sample in last[1:])
    served = arrived - (last[-1].waiting - last[0].waiting)
    return math.ceil(arrived / served * load.ready / options.trust) if served > 0 else 0


def _average_rate(load: Load) -> float:
    """Requests per second, over the last minute or as much of it as there is."""
    recent = []
    for sample in reversed(load.samples):
        if sample.at <= load.now - RATE_WINDOW_S:
            break
        recent.append(sample.requests_per_s)
    return sum(recent) / len(recent) if recent else 0.0


def _number(memory: Mapping[str, object], key: str, default: float = 0.0) -> float:
    return float(cast("float", memory.get(key, default)))


plug = QueueWait()
