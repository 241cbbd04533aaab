from __future__ import annotations

import numpy as np
import pytest

from penstock.core.classification import classify
from penstock.core.errors import InvalidInput


def test_highest_value_comes_first_with_its_index() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], dtype="f4")
    assert classify(scores, 2).tolist() == [[b"0.700000:1", b"0.200000:2"], [b"0.500000:0", b"0.250000:1"]]


def test_label_follows_the_index_where_there_is_one() -> None:
    scores = np.array([[1, 5, 3]], dtype="i8")
    assert classify(scores, 3, ["cat", "dog"]).tolist() == [[b"5:1:dog", b"3:2", b"1:0:cat"]]


def test_more_classes_than_values_gives_all_values() -> None:
    assert classify(np.zeros((2, 3), dtype="f8"), 10).shape == (2, 3)


def test_unbatched_output_is_one_row_without_a_batch_axis() -> None:
    assert classify(np.array([1.0, 2.0]), 1, batched=False).tolist() == [b"2.000000:1"]


def test_axes_after_the_batch_count_as_one() -> None:
    scores = np.arange(8, dtype="u1").reshape(2, 2, 2)
    assert classify(scores, 1).tolist() == [[b"3:3"], [b"7:3"]]


def test_nan_is_never_best() -> None:
    assert classify(np.array([[np.nan, -1.0, -2.0]]), 2).tolist() == [[b"-1.000000:1", b"-2.000000:2"]]


def test_nan_comes_after_negative_infinity() -> None:
    assert classify(np.array([[np.nan, -np.inf, np.nan]]), 1).tolist() == [[b"-inf:1"]]


def test_smallest_and_largest_integers_sort_without_overflow() -> None:
    ends = np.array([[-(2**63), 2**63 - 1]], dtype="i8")
    assert classify(ends, 2).tolist() == [[b"9223372036854775807:1", b"-9223372036854775808:0"]]
    assert classify(np.array([[0, 2**64 - 1]], dtype="u8"), 1).tolist() == [[b"18446744073709551615:1"]]


@pytest.mark.parametrize("array", [np.array([[b"x"]], dtype=object), np.array([[True]])])
def test_text_and_booleans_cannot_be_classified(array: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="integers or floats"):
        classify(array, 1)


def test_class_count_below_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 classes"):
        classify(np.zeros((1, 2)), 0)


def test_empty_batch_gives_an_empty_batch() -> None:
    assert classify(np.zeros((0, 4), dtype="f4"), 2).shape == (0, 2)
