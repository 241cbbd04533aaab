from __future__ import annotations

import numpy as np
import pytest

from penstock.runtime.batching.quarantine import ALONE, FREE, REFUSED, Quarantine

POISON = {"x": np.array([6.0, 6.0])}
OTHER = {"x": np.array([1.0, 2.0])}


def verdict(quarantine: Quarantine, inputs: dict[str, np.ndarray], now: float) -> str:
    return quarantine.judge(inputs, now)[0]


def convicted(now: float = 0.0, deaths: int = 2) -> Quarantine:
    quarantine = Quarantine()
    for death in range(deaths):
        quarantine.add([POISON], now - (deaths - death - 1) * 0.001, alone=True)
    return quarantine


def test_suspect_runs_alone_and_convict_is_refused_while_others_are_free() -> None:
    quarantine = Quarantine()
    assert not quarantine
    quarantine.add([POISON], 0.0, alone=False)
    assert verdict(quarantine, POISON, 1.0) == ALONE
    quarantine.add([POISON], 1.0, alone=True)
    assert quarantine.judge(POISON, 2.0) == (REFUSED, 2, 59.0)
    assert verdict(quarantine, OTHER, 2.0) == FREE
    assert verdict(quarantine, {"x": POISON["x"].astype("f4")}, 2.0) == FREE


def test_answer_clears_a_suspect_for_good() -> None:
    quarantine = convicted(deaths=1)
    quarantine.clear(OTHER)
    assert verdict(quarantine, POISON, 1.0) == ALONE
    quarantine.clear(POISON)
    assert not quarantine
    assert verdict(quarantine, POISON, 1.0) == FREE


def test_company_shares_the_blame() -> None:
    quarantine = Quarantine()
    for death in range(3):
        for _ in range(5):  # the same death, told by each batch that the worker held
            quarantine.add([OTHER], float(death), alone=False)
        assert verdict(quarantine, OTHER, 3.0) == ALONE, f"refused after {death + 1} deaths in company"
    quarantine.add([OTHER], 3.0, alone=False)
    assert verdict(quarantine, OTHER, 3.0) == REFUSED


def test_equal_requests_of_one_batch_are_one_suspect_of_one_death() -> None:
    quarantine = Quarantine()
    quarantine.add([POISON] * 5 + [OTHER], 0.0, alone=True)
    assert (verdict(quarantine, POISON, 1.0), verdict(quarantine, OTHER, 1.0)) == (ALONE, ALONE)
    for number in range(2):
        quarantine.add([OTHER] * 3, 2.0 + number, alone=True)
    assert verdict(quarantine, OTHER, 4.0) == REFUSED, "a batch of nothing else is as good as alone"


def test_convict_gets_one_trial_at_a_time_and_each_death_doubles_the_wait() -> None:
    quarantine = convicted(now=0.0)
    assert verdict(quarantine, POISON, 59.0) == REFUSED
    assert verdict(quarantine, POISON, 61.0) == ALONE
    assert verdict(quarantine, POISON, 61.1) == REFUSED, "a crowd of equal requests must not all be tried"
    quarantine.add([POISON], 62.0, alone=True)
    assert verdict(quarantine, POISON, 62.0 + 119.0) == REFUSED
    assert verdict(quarantine, POISON, 62.0 + 121.0) == ALONE
    for death in range(20):
        quarantine.add([POISON], 181.0 + death, alone=True)
    assert quarantine.judge(POISON, 200.0)[2] == pytest.approx(3600.0)


def test_memory_is_bounded_and_old_deaths_are_forgotten() -> None:
    quarantine = Quarantine()
    for number in range(5000):
        quarantine.add([{"x": np.array([float(number)])}], 0.0, alone=True)
    assert len(quarantine) == 1024
    assert verdict(quarantine, {"x": np.array([0.0])}, 1.0) == FREE
    assert verdict(quarantine, {"x": np.array([4999.0])}, 1.0) == ALONE
    assert verdict(quarantine, {"x": np.array([4999.0])}, 7201.0) == FREE
    assert not quarantine


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.arange(100.0).reshape(10, 10)[::2, ::3]},
        {"x": np.array(5)},
        {"x": np.zeros((0, 4), "f4")},
        {"text": np.array([b"a", "b"], dtype=object), "x": np.array([[True]])},
    ],
    ids=["strided", "scalar", "empty", "text"],
)
def test_contents_of_every_kind_are_recognised(inputs: dict[str, np.ndarray]) -> None:
    quarantine = Quarantine()
    quarantine.add([inputs], 0.0, alone=True)
    copies = {name: array.copy() for name, array in inputs.items()}
    assert verdict(quarantine, copies, 1.0) == ALONE


def test_equal_beginnings_do_not_convict_other_contents() -> None:
    first, second = np.zeros(1000), np.zeros(1000)
    second[-1] = 1.0
    quarantine = Quarantine()
    quarantine.add([{"x": first}], 0.0, alone=True)
    assert verdict(quarantine, {"x": second}, 1.0) == FREE
    quarantine.clear({"x": second})
    assert verdict(quarantine, {"x": first}, 1.0) == ALONE
