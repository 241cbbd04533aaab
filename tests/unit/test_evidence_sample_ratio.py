"""The alarm for requests that do not arrive in the shares that they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penstock.fleet.evidence.sample_ratio import log_evidence

ALPHA = 0.01


def alarms(runs: int, total: int, shares: list[float], arriving: list[float], seed: int) -> tuple[float, float]:
    """The share of runs with an alarm, looked at every 20 requests; and when the middle one of them came."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(runs):
        counts = np.cumsum(rng.multinomial(20, arriving, total // 20), axis=0)
        for at, row in enumerate(counts):
            if log_evidence(row.tolist(), shares) >= math.log(1 / ALPHA):
                found.append(20 * (at + 1))
                break
    return len(found) / runs, float(np.median(found)) if found else math.inf


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]])
def test_right_shares_rarely_raise_an_alarm_however_often_one_looks(shares: list[float]) -> None:
    measured, _ = alarms(200, 10_000, shares, shares, seed=1)
    assert measured <= ALPHA + 3.1 * math.sqrt(ALPHA * (1 - ALPHA) / 200)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_false_alarms_under_continuous_watching(figure) -> None:
    measured, _ = alarms(2000, 40_000, [0.5, 0.5], [0.5, 0.5], seed=2)
    figure("P9e", "sample-ratio alarms without a reason, watched all the time", 100 * measured, "%", goal="≤ 1 %")
    assert measured <= ALPHA + 3.1 * math.sqrt(ALPHA * (1 - ALPHA) / 2000)


def test_wrong_shares_raise_one(figure) -> None:
    measured, after = alarms(30, 20_000, [0.5, 0.5], [0.47, 0.53], seed=3)
    figure("P9e", "requests until 47:53 instead of 50:50 raises an alarm, median", after, "requests")
    assert measured == 1
    assert after < 8000


def test_a_request_to_an_arm_without_a_share_is_a_mismatch_at_once() -> None:
    assert log_evidence([10, 1], [1.0, 0.0]) == math.inf
    assert log_evidence([10, 0], [1.0, 0.0]) == pytest.approx(0.0, abs=1e-9)


def test_nothing_counted_says_nothing() -> None:
    assert log_evidence([0, 0], [0.3, 0.7]) == pytest.approx(0.0)


def test_evidence_is_a_martingale_under_the_wished_shares() -> None:
    """The expected evidence after one more request is what it was."""
    shares, counts = [0.2, 0.8], [7, 19]
    before = math.exp(log_evidence(counts, shares))
    after = shares[0] * math.exp(log_evidence([8, 19], shares)) + shares[1] * math.exp(log_evidence([7, 20], shares))
    assert after == pytest.approx(before)
