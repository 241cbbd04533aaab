from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.lifecycle import LOADING, READY, UNAVAILABLE, UNLOADING, Held, Load, plan

FINGERPRINTS = st.sampled_from("ab")
WISHED = st.dictionaries(st.integers(1, 4), FINGERPRINTS, max_size=4)
HELD = st.dictionaries(
    st.integers(1, 4), st.tuples(st.sampled_from([LOADING, READY, UNLOADING, UNAVAILABLE]), FINGERPRINTS), max_size=4
)


@given(WISHED, HELD)
def test_something_ready_is_kept_until_something_wished_is_ready(
    wished: dict[int, str], held: dict[int, tuple[str, str]]
) -> None:
    actions = plan(wished, [Held(number, *rest) for number, rest in held.items()])
    unloaded = {action.number for action in actions if not isinstance(action, Load)}
    ready_before = {number for number, (state, _) in held.items() if state == READY}
    if wished and ready_before:
        assert ready_before - unloaded
    assert not unloaded & set(wished)


@given(WISHED, st.dictionaries(st.integers(1, 4), st.booleans(), max_size=4))
def test_following_the_plan_settles(wished: dict[int, str], works: dict[int, bool]) -> None:
    held: dict[int, Held] = {9: Held(9, READY, "old")}
    for _ in range(20):
        actions = plan(wished, list(held.values()))
        if not actions:
            break
        for action in actions:
            if isinstance(action, Load):
                state = READY if works.get(action.number, True) else UNAVAILABLE
                held[action.number] = Held(action.number, state, wished[action.number])
            else:
                del held[action.number]
    assert plan(wished, list(held.values())) == []
    ready = {number for number, version in held.items() if version.state == READY}
    working = {number for number in wished if works.get(number, True)}
    assert ready == (working if working == set(wished) else working | {9})
