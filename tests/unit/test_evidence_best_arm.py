"""P(arm is best) by integration, beside drawing and beside exact values."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.fleet.evidence.best_arm import best_of_betas, best_of_students


def drawn(means: np.ndarray) -> np.ndarray:
    """Shares of rows in which each of the arms is best, `(arms, draws)`."""
    return np.bincount(means.argmax(axis=0), minlength=len(means)) / means.shape[1]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 1], [1, 1]),
        ([3.5, 20.25, 1], [7, 22.5, 1]),
        ([501, 531, 400, 2, 90], [501, 471, 380, 2, 110]),
        ([1, 5e4, 5.02e4], [1, 5e4, 4.98e4]),
        ([1 + 3.0 * arm for arm in range(10)], [2 + 2.5 * arm for arm in range(10)]),
    ],
)
def test_betas_agree_with_drawing_to_three_digits(a: list[float], b: list[float]) -> None:
    rng = np.random.default_rng(1)
    draws = rng.beta(np.array(a)[:, None], np.array(b)[:, None], (len(a), 1_000_000))
    assert best_of_betas(a, b) == pytest.approx(drawn(draws), abs=2e-3)  # 4 standard deviations of a million draws


def test_betas_agree_with_exact_values(figure) -> None:
    """P(X > Y) of whole numbers is a finite sum (Evan Miller's formula)."""

    def exact(a: int, b: int, c: int, d: int) -> float:
        """That Beta(c, d) is above Beta(a, b)."""

        def log_beta(x: float, y: float) -> float:
            return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

        return sum(
            math.exp(log_beta(a + i, b + d) - math.log(d + i) - log_beta(1 + i, d) - log_beta(a, b)) for i in range(c)
        )

    worst = 0.0
    for a, b, c, d in [(1, 1, 1, 1), (10, 20, 11, 19), (1, 300, 2, 290), (500, 500, 540, 460), (1, 1, 900, 100)]:
        worst = max(worst, abs(best_of_betas([a, c], [b, d])[1] - exact(a, b, c, d)))
    figure("P9f", "Thompson's weights differ from exact values by, at most", worst, "", goal="< 0.0005")
    assert worst < 5e-5


@pytest.mark.parametrize("degrees", [[2, 2, 8], [8, 50, 1e5], [3, 1e6, 40]])
def test_students_agree_with_drawing_to_three_digits(degrees: list[float]) -> None:
    rng, means, scales = np.random.default_rng(2), [0.0, 0.1, -0.2], [0.1, 0.3, 1.0]
    draws = np.stack(
        [mean + scale * rng.standard_t(nu, 1_000_000) for nu, mean, scale in zip(degrees, means, scales, strict=True)]
    )
    assert best_of_students(degrees, means, scales) == pytest.approx(drawn(draws), abs=2e-3)


@pytest.mark.parametrize("arms", [2, 10])
def test_it_takes_less_than_a_millisecond(arms: int, figure) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.uniform(1, 1000, arms).tolist(), rng.uniform(1, 1000, arms).tolist()
    took = []
    for _ in range(50):
        began = time.perf_counter()
        best_of_betas(a, b)
        took.append(time.perf_counter() - began)
    figure("P9f", f"Thompson's weights of {arms} arms are computed in", 1e6 * min(took), "µs", goal="< 1000 µs")
    assert min(took) < 1e-3


count = st.floats(0, 1e7)


@settings(max_examples=60)
@given(st.lists(st.tuples(count, count), min_size=1, max_size=10))
def test_shares_are_shares_for_any_counts(arms: list[tuple[float, float]]) -> None:
    shares = best_of_betas([1 + good for good, _ in arms], [1 + bad for _, bad in arms])
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert all(0 <= share <= 1 for share in shares)
    mirrored = best_of_betas([1 + good for good, _ in arms[::-1]], [1 + bad for _, bad in arms[::-1]])
    assert mirrored[::-1] == pytest.approx(shares, abs=1e-9)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(2, 1e6), st.floats(-1e3, 1e3), st.floats(1e-6, 1e3)), min_size=1, max_size=6))
def test_shares_are_shares_for_any_normal_arms(arms: list[tuple[float, float, float]]) -> None:
    shares = best_of_students(*(list(values) for values in zip(*arms, strict=True)))
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert all(0 <= share <= 1 for share in shares)


def test_units_of_normal_arms_do_not_matter() -> None:
    plain = best_of_students([8.0, 5.0, 1e6], [1.0, 1.2, 0.9], [0.1, 0.2, 0.3])
    for unit in (1e-280, 1e280):
        scaled = best_of_students(
            [8.0, 5.0, 1e6], [unit * m for m in (1.0, 1.2, 0.9)], [unit * s for s in (0.1, 0.2, 0.3)]
        )
        assert scaled == pytest.approx(plain, abs=1e-9)


def test_equal_arms_share_equally() -> None:
    assert best_of_betas([3.5] * 4, [8.25] * 4) == pytest.approx([0.25] * 4)
    assert best_of_students([5.0] * 3, [1.0] * 3, [0.5] * 3) == pytest.approx([1 / 3] * 3)
