"""What is written can be read back, and nothing but a Mismatch comes out of reading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.coercion import Mismatch, coerce, parameter

KINDS: list[Any] = [
    int,
    float,
    bool,
    str,
    int | None,
    tuple[int, ...],
    tuple[str, ...],
    Mapping[str, int],
    Mapping[str, bool | int | float | str],
]
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.integers())
def test_a_whole_number_survives_its_text(value: int) -> None:
    assert coerce(str(value), int) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_its_text(value: float) -> None:
    assert coerce(repr(value), float) == value


@given(st.integers(min_value=0, max_value=1 << 40), st.sampled_from([("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_a_size_is_exact(count: int, unit: tuple[str, int]) -> None:
    assert coerce(f"{count}{unit[0]}", int, "bytes") == count << unit[1]


@given(st.integers(min_value=0, max_value=10**6))
def test_durations_agree_across_units(milliseconds: int) -> None:
    seconds = coerce(f"{milliseconds}ms", float, "s")
    assert isinstance(seconds, float) and math.isclose(seconds, milliseconds / 1000, abs_tol=1e-12)


@given(st.lists(st.integers(), max_size=5))
def test_a_list_survives_its_text(values: list[int]) -> None:
    assert coerce(",".join(map(str, values)), tuple[int, ...]) == tuple(values)


@given(json_like | st.text(), st.sampled_from(KINDS), st.sampled_from(["", "bytes", "s"]))
def test_reading_gives_the_declared_type_or_a_mismatch(value: object, kind: Any, unit: str) -> None:
    try:
        first = coerce(value, kind, unit)
    except Mismatch:
        return
    assert coerce(first, kind, unit) == first  # reading what was read changes nothing


@given(st.text())
def test_any_text_is_some_parameter(text: str) -> None:
    assert isinstance(parameter(text), (bool, int, float, str))


def test_a_type_that_is_no_option_is_a_fault_of_the_code() -> None:
    with pytest.raises(TypeError):
        coerce("x", bytes)
