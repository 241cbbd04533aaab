"""What each way of balancing gives in virtual time: the same code that routers run, replicas whose costs are known."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
import simulated_replicas as simulated
from simulated_replicas import LLAMACPP, OPENVINO, Speed

Workload = Callable[[random.Random], list[simulated.Ask]]
SEEDS = range(10)
MIXED = (simulated.nothing_shared, simulated.little_shared, simulated.skewed)


def mean(
    balance: str, workload: Workload, callers: int, speed: Speed = OPENVINO, load: float | None = None
) -> simulated.Figures:  # fmt: skip
    """Over the seeds; each way of balancing gets the very same requests. `load`: they come at times of their own, so
    many as are this share of what `least` carries."""
    per_s = None if load is None else load * carried(workload, speed)
    found = [
        simulated.run(
            balance, workload(random.Random(f"{workload.__name__} {seed}")), seed=seed, callers=callers, speed=speed,
            per_s=per_s,
        )
        for seed in SEEDS
    ]  # fmt: skip
    fields = ("mean_s", "p50_s", "p90_s", "whole_s", "rate", "read")
    return simulated.Figures(*(statistics.mean(getattr(one, field) for one in found) for field in fields))


def carried(workload: Workload, speed: Speed) -> float:
    """Requests per second whose answers nobody waited for, when `least` has all that it can do."""
    asks = workload(random.Random("carried"))
    share = len(asks) / sum(1 + len(ask.then) for ask in asks)
    return share * simulated.run("least", asks, seed=0, callers=9, speed=speed).rate


@pytest.mark.parametrize("callers", [3, 6, 12])
@pytest.mark.parametrize("workload", [simulated.conversations, simulated.shared_prompts])
def test_what_shares_its_beginnings_is_answered_much_sooner(workload: Workload, callers: int) -> None:
    prefix = mean("prefix", workload, callers)
    for balance in ("round_robin", "least"):
        other = mean(balance, workload, callers)
        assert prefix.mean_s < 0.85 * other.mean_s, f"{balance}: {other}"
        assert prefix.p90_s < 1.0 * other.p90_s, f"{balance}: {other}"
        assert prefix.rate > 1.2 * other.rate, f"{balance}: {other}"
        assert prefix.read < 0.75 * other.read, f"{balance}: {other}"


@pytest.mark.parametrize("speed", [OPENVINO, LLAMACPP])
@pytest.mark.parametrize("workload", [simulated.conversations, simulated.shared_prompts, simulated.agents])
def test_it_is_so_when_callers_come_at_times_of_their_own(workload: Workload, speed: Speed) -> None:
    prefix = mean("prefix", workload, 0, speed, 0.7)
    for balance in ("round_robin", "least"):
        other = mean(balance, workload, 0, speed, 0.7)
        assert prefix.mean_s < 0.8 * other.mean_s, f"{balance}: {other}"
        assert prefix.whole_s < 0.9 * other.whole_s, f"{balance}: {other}"


@pytest.mark.parametrize("callers", [1, 3, 6, 12])
@pytest.mark.parametrize("workload", MIXED)
def test_nothing_else_is_worse_for_it(workload: Workload, callers: int) -> None:
    prefix = mean("prefix", workload, callers)
    for balance in ("round_robin", "least"):
        other = mean(balance, workload, callers)
        assert prefix.mean_s < 1.05 * other.mean_s, f"{balance}: {other}"
        assert prefix.p90_s < 1.05 * other.p90_s, f"{balance}: {other}"
        assert prefix.rate > 0.95 * other.rate, f"{balance}: {other}"


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("workload", MIXED)
def test_nothing_else_is_worse_when_callers_come_at_times_of_their_own(workload: Workload, load: float) -> None:
    """Where all are alike, going round is hard to beat, and `least` does not."""
    prefix = mean("prefix", workload, 0, OPENVINO, load)
    for balance in ("round_robin", "least"):
        other = mean(balance, workload, 0, OPENVINO, load)
        assert prefix.mean_s < 1.05 * other.mean_s, f"{balance}: {other}"
        assert prefix.whole_s < 1.05 * other.whole_s, f"{balance}: {other}"


def test_long_answers_do_not_gather_where_their_prompt_is() -> None:
    speed = Speed(1 / 480, 0.033, 0.3, 256)  # answers hinder each other more than they may
    prefix = mean("prefix", simulated.long_answers, 0, speed, 0.7)
    other = mean("least", simulated.long_answers, 0, speed, 0.7)
    assert prefix.mean_s < 1.02 * other.mean_s, other
    assert prefix.whole_s < 1.05 * other.whole_s, other


def test_replicas_that_keep_nothing_are_soon_treated_so() -> None:
    """An engine without a cache, which says nothing of that; all prompts have one of twelve beginnings."""
    found = {}
    for balance in ("least", "prefix"):
        dice = random.Random(3)
        asks = [ask for _ in range(8) for ask in simulated.shared_prompts(dice)]
        beginnings = [ask.messages[0] for ask in asks[:60]]
        for ask in asks:
            ask.messages[0] = dice.choice(beginnings)
        found[balance] = simulated.run(balance, asks, seed=3, per_s=1.0, cache_blocks=0)
    assert found["prefix"].mean_s < 1.05 * found["least"].mean_s


def test_the_same_seed_gives_the_same_figures() -> None:
    once, again = (
        simulated.run("least", simulated.skewed(random.Random(3)), seed=5, callers=4) for _ in range(2)
    )  # fmt: skip
    assert once == again
