"""Figures as people read them: "4.1 %", "11,004", "12 ms"."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """0.041 as "4.1 %": three digits that count, and no more than the figure deserves."""
    return f"{100 * share:.3g} %" if share < 0.9995 or share >= 1 else f"{100 * share:.4g} %"


def count(number: float) -> str:
    return f"{number:,.0f}"


def seconds(duration_s: float) -> str:
    """A latency or a wait, in the unit that suits it."""
    if duration_s < 0.9995:
        return f"{1000 * duration_s:.3g} ms"
    if duration_s < 599.5:
        return f"{duration_s:.3g} s"
    return f"{duration_s / 60:.3g} min" if duration_s < 59_970 else f"{duration_s / 3600:,.0f} h"


def rate(events: float, of: float) -> str:
    """ "4.1 % of 1,220"."""
    return f"{percent(events / of)} of {count(of)}" if of else "none yet"


def strength(log_evidence: float) -> str:
    """How many times more likely: "0.42", "12.3", "3,100", "over 10⁸"."""
    if log_evidence > 18.5:
        return "over 10⁸"
    times = math.exp(log_evidence)
    return f"{times:,.0f}" if times >= 100 else f"{times:.3g}" if times >= 0.01 else "0"
