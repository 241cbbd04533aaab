"""Figures in explanations and reasons are readable: never 1e+03."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.fleet.evidence import words


@given(st.floats(1e-6, 1e7))
def test_durations_have_no_exponents(duration_s: float) -> None:
    assert re.fullmatch(r"[\d,]+(\.\d+)?(e-0\d)? (ms|s|min|h)", words.seconds(duration_s))


@pytest.mark.parametrize(
    ("duration_s", "said"),
    [
        (0, "0 ms"),
        (0.0129, "12.9 ms"),
        (0.9996, "1 s"),
        (73, "73 s"),
        (599.7, "10 min"),
        (5400, "90 min"),
        (86400, "24 h"),
    ],
)
def test_durations_have_the_unit_that_suits(duration_s: float, said: str) -> None:
    assert words.seconds(duration_s) == said


def test_shares_and_counts() -> None:
    assert words.percent(0.0413) == "4.13 %"
    assert words.percent(1) == "100 %"
    assert words.percent(0.9999) == "99.99 %"
    assert words.rate(50, 1220) == "4.1 % of 1,220"
    assert words.rate(0, 0) == "none yet"


def test_strengths() -> None:
    shown = [words.strength(math.log(value)) for value in (0.42, 12.34, 3100.4, 1e9)]
    assert shown == ["0.42", "12.3", "3,100", "over 10⁸"]
    assert words.strength(-math.inf) == "0"
