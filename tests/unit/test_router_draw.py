"""Which arm a request gets: by its weight, and for a user always the same."""

from __future__ import annotations

import random

import pytest

from penstock.fleet.router.draw import draw, rank, stick
from penstock.fleet.routes import Arm


def arms(**weights: float) -> list[Arm]:
    return [Arm(int(name[1:]), weight) for name, weight in weights.items()]


def test_each_arm_gets_its_share_to_a_point() -> None:
    given = arms(r1=0.7, r2=0.2, r3=0.1)
    source = random.Random(4)
    counts = [0, 0, 0]
    for _ in range(100_000):
        counts[draw(given, source.random())] += 1
    assert [count / 100_000 for count in counts] == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


def test_an_arm_without_weight_is_never_drawn() -> None:
    given = arms(r1=0.0, r2=1.0, r3=0.0)
    assert {draw(given, number / 1000) for number in range(1000)} == {1}
    assert draw(arms(r1=0.1, r2=0.2, r3=0.7000000001, r4=0.0), 1 - 2**-53) == 2
    with pytest.raises(ValueError, match="weight"):
        draw(arms(r1=0.0), 0.5)
    with pytest.raises(ValueError, match="weight"):
        stick(arms(r1=0.0), b"user")


def test_users_are_shared_out_by_the_weights() -> None:
    given = arms(r1=0.7, r2=0.2, r3=0.1)
    counts = [0, 0, 0]
    for user in range(50_000):
        counts[stick(given, b"fraud/%d" % user)] += 1
    assert [count / 50_000 for count in counts] == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


def test_a_user_moves_only_to_an_arm_that_gained() -> None:
    before, after = arms(r1=0.8, r2=0.1, r3=0.1), arms(r1=0.7, r2=0.1, r3=0.2)
    moved = 0
    for user in range(20_000):
        key = b"%d" % user
        old, new = stick(before, key), stick(after, key)
        moved += old != new
        if old != new:
            assert new == 2 or (old == 0 and new == 1), "only arms that gained beside the one that is left get users"
    assert moved / 20_000 == pytest.approx(0.1, abs=0.02), "no more than the weights ask for"


def test_only_the_users_of_an_arm_that_goes_move() -> None:
    before, after = arms(r1=0.5, r2=0.3, r3=0.2), arms(r1=0.5, r3=0.2)
    for user in range(5_000):
        key = b"%d" % user
        if (old := stick(before, key)) != 1:
            assert before[old].revision == after[stick(after, key)].revision


def test_only_the_sessions_of_a_replica_that_goes_move() -> None:
    before, after = ["a", "b", "c", "d"], ["a", "c", "d"]
    firsts = []
    for session in range(5_000):
        key = b"%d" % session
        first = before[rank(before, key)[0]]
        firsts.append(first)
        if first != "b":
            assert after[rank(after, key)[0]] == first
    for name in before:
        assert firsts.count(name) / 5_000 == pytest.approx(0.25, abs=0.03)
