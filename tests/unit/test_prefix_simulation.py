"""What each way of balancing gives in virtual time: the same code that routers run, replicas whose costs are known."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
import simulated_replicas as simulated

Workload = Callable[[random.Random], list[simulated.Ask]]
SEEDS = range(10)


def mean(balance: str, workload: Workload, callers: int) -> simulated.Figures:
    """Over the seeds; each way of balancing gets the very same requests."""
    found = [
        simulated.run(balance, workload(random.Random(f"{workload.__name__} {seed}")), seed=seed, callers=callers)
        for seed in SEEDS
    ]  # fmt: skip
    fields = ("p50_s", "p90_s", "rate", "read")
    return simulated.Figures(*(statistics.mean(getattr(one, field) for one in found) for field in fields))


@pytest.mark.parametrize("callers", [3, 6, 12])
@pytest.mark.parametrize("workload", [simulated.conversations, simulated.shared_prompts])
def test_what_shares_its_beginnings_is_answered_much_sooner(workload: Workload, callers: int) -> None:
    prefix = mean("prefix", workload, callers)
    for balance in ("round_robin", "least"):
        other = mean(balance, workload, callers)
        assert prefix.p50_s < 0.75 * other.p50_s, f"{balance}: {other}"
        assert prefix.p90_s < 1.0 * other.p90_s, f"{balance}: {other}"
        assert prefix.rate > 1.2 * other.rate, f"{balance}: {other}"
        assert prefix.read < 0.75 * other.read, f"{balance}: {other}"


@pytest.mark.parametrize("callers", [1, 3, 6, 12])
@pytest.mark.parametrize("workload", [simulated.nothing_shared, simulated.little_shared, simulated.skewed])
def test_nothing_else_is_worse_for_it(workload: Workload, callers: int) -> None:
    prefix = mean("prefix", workload, callers)
    for balance in ("round_robin", "least"):
        other = mean(balance, workload, callers)
        assert prefix.p50_s < 1.05 * other.p50_s, f"{balance}: {other}"
        assert prefix.p90_s < 1.05 * other.p90_s, f"{balance}: {other}"
        assert prefix.rate > 0.95 * other.rate, f"{balance}: {other}"


def test_the_same_seed_gives_the_same_figures() -> None:
    once, again = (
        simulated.run("least", simulated.skewed(random.Random(3)), seed=5, callers=4) for _ in range(2)
    )  # fmt: skip
    assert once == again
