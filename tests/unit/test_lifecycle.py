from __future__ import annotations

import pytest

from penstock.core.errors import InvalidInput
from penstock.runtime import lifecycle
from penstock.runtime.lifecycle import LOADING, READY, UNAVAILABLE, Held, Load, Unload, chosen, default, plan


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest:1", {7}),
        ("latest", {7}),
        ("latest:2", {4, 7}),
        ("latest:9", {1, 4, 7}),
        ("all", {1, 4, 7}),
        ("1, 4", {1, 4}),
        ("2", set()),
    ],
)
def test_policy_picks_versions(policy: str, expected: set[int]) -> None:
    assert chosen(policy, [4, 1, 7]) == expected


@pytest.mark.parametrize("policy", ["", "newest", "latest:0", "1;2", "latest:-1"])
def test_unreadable_policy_is_refused(policy: str) -> None:
    with pytest.raises(InvalidInput):
        chosen(policy, [1])


def test_new_version_is_loaded_before_the_old_one_goes() -> None:
    held = [Held(1, READY, "a")]
    assert plan({2: "b"}, held) == [Load(2)]
    assert plan({2: "b"}, [*held, Held(2, LOADING, "b")]) == []
    assert plan({2: "b"}, [*held, Held(2, READY, "b")]) == [Unload(1)]


def test_failed_version_leaves_the_old_one_serving_and_is_not_retried() -> None:
    assert plan({2: "b"}, [Held(1, READY, "a"), Held(2, UNAVAILABLE, "b")]) == []


def test_failed_version_is_retried_when_its_files_change() -> None:
    assert plan({2: "c"}, [Held(1, READY, "a"), Held(2, UNAVAILABLE, "b")]) == [Load(2)]


def test_changed_files_of_a_served_version_are_loaded_beside_it() -> None:
    assert plan({1: "b"}, [Held(1, READY, "a")]) == [Load(1)]


def test_withdrawn_model_is_unloaded() -> None:
    assert plan({}, [Held(1, READY, "a"), Held(2, READY, "b")]) == [Unload(1), Unload(2)]


def test_old_version_stands_in_for_a_wished_one_that_failed() -> None:
    held = [Held(1, READY, "a"), Held(2, READY, "b"), Held(3, UNAVAILABLE, "c")]
    assert plan({2: "b", 3: "c"}, held) == []
    assert plan({2: "b", 3: "c"}, [*held[:2], Held(3, READY, "c")]) == [Unload(1)]


def test_oldest_versions_go_first_and_one_for_each_that_became_ready() -> None:
    held = [Held(1, READY, "a"), Held(2, READY, "b"), Held(3, READY, "c"), Held(4, LOADING, "d")]
    assert plan({3: "c", 4: "d"}, held) == [Unload(1)]


def test_version_that_is_being_replaced_is_not_loaded_a_second_time_beside_that() -> None:
    assert plan({1: "c"}, [Held(1, READY, "b", replacing=True)]) == []
    assert plan({1: "c"}, [Held(1, READY, "b")]) == [Load(1)]


def test_version_kept_for_going_back_stays_until_another_is_loaded() -> None:
    held = [Held(1, READY, "a"), Held(2, READY, "b")]
    assert plan({2: "b"}, held, kept=[1]) == []
    assert plan({2: "b"}, held) == [Unload(1)]
    assert plan({3: "c"}, held, kept=[1]) == [Load(3), Unload(1)]
    assert plan({3: "c"}, [*held, Held(3, LOADING, "c")], kept=[1]) == [Unload(1)]
    assert plan({1: "a"}, held, kept=[2]) == []


def test_default_is_the_highest_ready_and_wished_version() -> None:
    assert default([1, 2, 3], [1, 2]) == 2
    assert default([1], [2]) == 1
    assert default([], [2]) is None


def test_states_are_those_of_the_repository_index() -> None:
    assert {lifecycle.LOADING, lifecycle.READY, lifecycle.UNLOADING, lifecycle.UNAVAILABLE} == {
        "LOADING", "READY", "UNLOADING", "UNAVAILABLE",
    }  # fmt: skip
