"""Knative's autoscaling arithmetic, over any quantity of which a replica carries so much.

Theory of operation. Two averages of the same samples are looked at: over the stable window, and over the panic window,
a tenth of it. Wished is what carries the stable average. Once the panic average needs `panic_threshold` times what is
ready, the scaler panics: the larger of both averages counts, and nothing shrinks until the panic average has been below
the threshold for a whole stable window. One call grows at most `max_up_rate` times what is ready and shrinks at most to
a `max_down_rate`-th of it.

One thing is ours, because chance alone would otherwise move a replica up and down for ever. Shrinking takes room: the
average must fit the smaller size with `slack`, and with `noise` of its standard errors. And a size that proved too
small is not gone back to for `settle_s`, unless fewer requests arrive than did then: in flight may be fewer only
because there are more replicas. With all three 0 the numbers are Knative's.

Source: knative.dev/serving, pkg/autoscaler/scaling/autoscaler.go (`Scale`), pkg/autoscaler/aggregation/bucketing.go
(`WindowAverage`), pkg/reconciler/autoscaling/resources/target.go (`ResolveMetricTarget`), and the defaults of its
config-autoscaler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from penstock.fleet.policy_options import option

LEAST_GOAL = 0.01  # Source: autoscaling.TargetMin
BATCHES = 10
MOST_OUTGROWN = 32
PRECISION = 1e6  # averages are cut off after six digits, so that rounding errors grow no replica; Source: bucketing.go

Sample = tuple[float, float]
"""A second's time and value."""


@dataclass(frozen=True, slots=True)
class Options:
    """Defaults are those of Knative's config-autoscaler; `target` is the policy's."""

    target: float = option(100.0, "What one replica carries at most.", minimum=0.01)
    utilization: float = option(
        0.7, "Share of `target` that is aimed at; the rest is room for what comes while a replica starts.",
        minimum=0.01, maximum=1,
    )  # fmt: skip
    stable_window_s: float = option(60.0, "Time that is averaged over.", unit="s", minimum=6, maximum=3600)
    panic_window: float = option(
        0.1, "Share of the stable window that is averaged over to see a rush.", minimum=0.01, maximum=1
    )
    panic_threshold: float = option(
        2.0, "How many times what is ready must be needed, by the panic window's average, to begin to panic.",
        minimum=1.1, maximum=10,
    )  # fmt: skip
    max_up_rate: float = option(1000.0, "Most growth in one decision, as a multiple of what is ready.", minimum=1.1)
    max_down_rate: float = option(2.0, "Most shrinking in one decision: to what is ready divided by it.", minimum=1.1)
    scale_down_delay_s: float = option(
        0.0, "Time for which the largest size wished in it is kept.", unit="s", minimum=0, maximum=3600
    )
    slack: float = option(
        0.1, "Room that must be left to shrink: the load, so much larger, still fits the smaller size. 0 is Knative's.",
        minimum=0, maximum=1,
    )  # fmt: skip
    noise: float = option(
        6.0, "Also to shrink: the average plus so many of its standard errors, at most twice the average, still fits "
        "the smaller size: three up and three down, which chance alone hardly does. 0 is Knative's.",
        minimum=0, maximum=100,
    )  # fmt: skip
    settle_s: float = option(
        3600.0, "Time in which a size that was too small for a rate is not tried again at it. 0 is Knative's.",
        unit="s", minimum=0, maximum=86_400,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    replicas: int
    reason: str
    memory: Mapping[str, object]


def decide(
    options: Options, samples: Sequence[Sample], *, now: float, ready: int, wished: int,
    memory: Mapping[str, object], what: str, arrivals: Sequence[Sample],
) -> Decision:  # fmt: skip
    """How many replicas carry the samples, oldest first. `what` names the quantity for people, with its unit;
    `arrivals` is how many requests came in the same seconds, of which follows how exact the average is.

    The memory is `since` (the first decision), `panic_since`, `panic_size`, `delayed` ([time, size], falling in size)
    and `outgrown` ([time, size, arrivals per second then]).
    """
    rush_s = max(1.0, options.stable_window_s * options.panic_window)
    stable = window_average(samples, now, options.stable_window_s)
    panic = window_average(samples, now, rush_s)
    before = wished or ready
    if stable is None or panic is None:
        return Decision(before, "no samples: what there is stays", memory)
    goal = max(LEAST_GOAL, options.target * options.utilization)
    divisor = max(1, ready)
    low, high = math.floor(divisor / options.max_down_rate), math.ceil(divisor * options.max_up_rate)
    by_stable = min(max(math.ceil(stable / goal), low), high)
    by_panic = min(max(math.ceil(panic / goal), low), high)
    rush = math.ceil(panic / goal) / divisor >= options.panic_threshold
    since, peak = _panic(options, memory, now, ready, rush)
    reason = f"{stable:.3g} {what} in {options.stable_window_s:g} s, {goal:g} a replica"
    outgrown = _outgrown(options, memory, now)
    if since is not None:
        size = peak = max(by_stable, by_panic, peak)
        reason = f"panic: {panic:.3g} {what} in the last seconds; {reason}"
    else:
        size = by_stable
        if size < before:
            size = min(before, max(size, _least(options, outgrown, stable, goal, samples, arrivals, now)))
    usual = _usual(options, samples, now, rush_s)
    if options.settle_s and size > before > 0 and math.ceil(usual / goal) * 2 >= before:
        usual = _usual(options, arrivals, now, rush_s)
        outgrown = [one for one in outgrown if one[1] > before or one[2] < usual][-MOST_OUTGROWN:]
        outgrown.append((now, before, usual))
    size, delayed = _delayed(options, memory, now, size)
    kept: dict[str, object] = {"since": memory.get("since", now)}
    if since is not None:
        kept |= {"panic_since": since, "panic_size": peak}
    if delayed:
        kept["delayed"] = delayed
    if outgrown:
        kept["outgrown"] = outgrown
    return Decision(size, reason, kept)


def recent(options: Options, samples: Sequence[Any]) -> Sequence[Any]:
    """The samples, one a second, that a decision looks at."""
    return samples[-math.ceil(2 * options.stable_window_s) :]


def window_average(samples: Sequence[Sample], now: float, window_s: float) -> float | None:
    """The average over the window that ends now, by seconds. None: nothing came for longer than a window.

    A second without a sample between two samples counts as 0. Seconds before the first sample, and those after the last
    one, are left out. When nothing came for a whole window, what was before is forgotten.
    """
    buckets = math.ceil(window_s)
    if not samples:
        return None
    later, total = samples[-1]
    silent = max(0, math.floor(now - later))
    if silent > window_s:
        return None
    if silent >= buckets:
        return 0.0
    age = 0  # of the sample, in seconds before the last one; ticks come a little early or late, and each is a second
    count = buckets - silent
    for at, value in reversed(samples[:-1]):
        gap = max(1, math.floor(later - at + 0.1))
        if gap >= window_s:
            count = age + 1
            break
        age, later = age + gap, at
        if age >= count:
            break
        total += value
    return math.floor(total / min(count, age + 1) * PRECISION) / PRECISION


def _panic(
    options: Options, memory: Mapping[str, object], now: float, ready: int, rush: bool
) -> tuple[float | None, int]:
    """Since when it panics, and the largest size wished in that time."""
    since = cast("float | None", memory.get("panic_since"))
    peak = int(cast("int", memory.get("panic_size", 0)))
    if not memory and ready > 1:
        # A scaler without history shrinks nothing before a window has passed.
        since, peak = now, ready
    if rush:
        return now, peak
    if since is not None and since + options.stable_window_s < now:
        return None, 0
    return since, peak


def _outgrown(options: Options, memory: Mapping[str, object], now: float) -> list[tuple[float, int, float]]:
    known = cast("Sequence[tuple[float, int, float]]", memory.get("outgrown", ()))
    return [(at, size, load) for at, size, load in known if now - at < options.settle_s]


def _least(
    options: Options, outgrown: Sequence[tuple[float, int, float]], stable: float, goal: float,
    samples: Sequence[Sample], arrivals: Sequence[Sample], now: float,
) -> int:  # fmt: skip
    """The smallest size that may be shrunk to: that has room for chance, and was not too small for a load like this."""
    room = stable * (1 + options.slack)
    rate = window_average(arrivals, now, options.stable_window_s) or 0.0
    most = rate * (1 + options.slack)
    if options.noise:
        came = max(1.0, rate * options.stable_window_s)
        error = _standard_error(stable, came, samples, now, options.stable_window_s)
        room = max(room, min(stable + options.noise * error, 2 * stable))
        most = max(most, min(rate * (1 + options.noise / math.sqrt(came)), 2 * rate))
    fits = math.ceil(math.floor(room / goal * PRECISION) / PRECISION)
    return max([fits, *(size + 1 for _, size, then in outgrown if most > then)])


def _usual(options: Options, samples: Sequence[Sample], now: float, rush_s: float) -> float:
    """The average, or what it was before the last seconds, which a rush may have filled; whichever is less."""
    past = [sample for sample in samples if sample[0] < now - rush_s]
    average = window_average(samples, now, options.stable_window_s) or 0.0
    before = window_average(past, now - rush_s, options.stable_window_s)
    return average if before is None else min(average, before)


def _standard_error(average: float, came: float, samples: Sequence[Sample], now: float, window_s: float) -> float:
    """Of the window's average: by ten parts of it, because seconds beside each other are alike, and no less than what
    chance does to an average over so many that `came`.

    Source: batch means; Law and Kelton, Simulation Modeling and Analysis, section 9.5.3. An average of M/G/∞ over n
    arrivals has the relative variance 2/n with exponential times of service.
    """
    parts: dict[int, list[float]] = {}
    for at, value in _within(samples, now, window_s):
        parts.setdefault(int((math.floor(now) - at) * BATCHES / window_s), []).append(value)
    means = [sum(part) / len(part) for part in parts.values()]
    count = len(means)
    if count < 2:
        return average
    middle = sum(means) / count
    seen = math.sqrt(sum((mean - middle) ** 2 for mean in means) / (count - 1) / count)
    return max(seen, average * math.sqrt(2 / came))


def _within(samples: Sequence[Sample], now: float, window_s: float) -> Iterator[Sample]:
    """The samples of the window, the newest first, at whole seconds."""
    for at, value in reversed(samples):
        if math.floor(now) - math.floor(at) >= window_s:
            return
        yield min(math.floor(at), math.floor(now)), value


def _delayed(
    options: Options, memory: Mapping[str, object], now: float, size: int
) -> tuple[int, list[tuple[float, int]]]:
    """The largest size of the last `scale_down_delay_s`, and what has to be remembered for it."""
    if not options.scale_down_delay_s:
        return size, []
    past = cast("Sequence[tuple[float, int]]", memory.get("delayed", ()))
    kept = [(at, one) for at, one in past if at > now - options.scale_down_delay_s and one > size]
    kept.append((now, size))
    return kept[0][1], kept
