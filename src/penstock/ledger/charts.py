"""Small charts as SVG text, for a page that needs nothing from anywhere: stacked bars and lines over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, HEIGHT = 860, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 28
Scale = Callable[[float], float]
# The smallest value that a logarithmic axis tells apart from 0.
_FLOOR: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chart shows of time, and what happened meanwhile: seconds and words."""

    seconds: float
    events: Sequence[tuple[float, str]] = ()

    def x(self, at: float) -> float:
        """Where a moment is, in pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at, 0.0), self.seconds) / self.seconds


def stacked(frame: Frame, width_s: float, series: Mapping[str, Sequence[float]]) -> str:
    """Bars of `width_s` each; each series is a class of CSS and stands on the one before."""
    sums = [sum(values) for values in zip(*series.values(), strict=True)]
    top = nice(max(sums, default=1.0))
    y = _linear(top)
    marks = []
    base = [0.0] * len(sums)
    for name, values in series.items():
        for index, value in enumerate(values):
            if value > 0:
                at, under = index * width_s, base[index]
                base[index] += value
                left, right = frame.x(at), frame.x(at + width_s)
                title = f"{name}: {value:,.0f}/s at {at:.1f} s"
                marks.append(
                    f'<rect class="{escape(name)}" x="{left:.1f}" y="{y(base[index]):.1f}" '
                    f'width="{max(0.5, right - left - 0.5):.1f}" height="{y(under) - y(base[index]):.1f}">'
                    f"<title>{escape(title)}</title></rect>"
                )
    return _svg(frame, "".join(marks), y, [top * part / 4 for part in range(5)], lambda value: f"{value:,.0f}")


def lines(
    frame: Frame,
    series: Mapping[str, Sequence[tuple[float, float]]],
    shown: Callable[[float], str],
    *,
    logarithmic: bool = False,
) -> str:
    """Lines through (seconds, value); each series is a class of CSS."""
    values = [value for points in series.values() for _, value in points if value > 0]
    if not values:
        return '<p class="none">Nothing to show.</p>'
    if logarithmic:
        low = 10 ** math.floor(math.log10(max(_FLOOR, min(values))))
        high = max(10 ** math.ceil(math.log10(max(values))), low * 10)
        y = _logarithmic(low, high)
        ticks = [low * 10**power for power in range(round(math.log10(high / low)) + 1)]
    else:
        top = nice(max(values))
        y = _linear(top)
        ticks = [top * part / 4 for part in range(5)]
    marks = []
    for name, points in series.items():
        path = " ".join(f"{frame.x(at):.1f},{y(value):.1f}" for at, value in points if value > 0 or not logarithmic)
        marks.append(f'<polyline class="{escape(name)}" points="{path}"><title>{escape(name)}</title></polyline>')
    return _svg(frame, "".join(marks), y, ticks, shown)


def nice(value: float) -> float:
    """The next round number from `value` up: 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= value * (1 - 1e-9))


def _linear(top: float) -> Scale:
    return lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _logarithmic(low: float, high: float) -> Scale:
    span = math.log10(high / low)
    return lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * max(0.0, math.log10(max(value, low) / low)) / span


def _svg(frame: Frame, marks: str, y: Scale, ticks: Sequence[float], shown: Callable[[float], str]) -> str:
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in ticks:
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(shown(tick))}</text>')
    step = nice(frame.seconds / 8)
    for number in range(int(frame.seconds / step) + 1):
        at = number * step
        parts.append(f'<text x="{frame.x(at):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{at:g} s</text>')
    parts.append(marks)
    for at, what in frame.events:
        x = frame.x(at)
        parts.append(
            f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(f'{what} at {at:.2f} s')}</title></line>"
        )
    return "".join((*parts, "</svg>"))
