"""What several answers are together."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.graphs.combine import majority


@pytest.mark.parametrize(
    "answers",
    [
        [[1, 2], [2, 2], [1, 3]],
        [[1, 2], [3, 4]],
        [[b"cat", b"dog"], [b"dog", b"dog"], [b"dog", b"cat"]],
        [[True, False], [False, False], [True, True]],
        [[7, 7]],
        [[[1, 2], [3, 4]], [[5, 2], [3, 0]], [[5, 9], [8, 0]]],
    ],
)
def test_the_majority_is_what_most_gave_and_of_equally_many_the_earliest(answers: list[object]) -> None:
    text = isinstance(np.ravel(np.array(answers, dtype=object))[0], bytes)
    arrays = [np.array(each, dtype=object if text else None) for each in answers]
    found = majority("y", arrays)
    assert found.shape == arrays[0].shape and found.dtype == arrays[0].dtype
    columns = zip(*(array.ravel() for array in arrays), strict=True)
    assert found.ravel().tolist() == [Counter(each).most_common(1)[0][0] for each in columns]


def test_the_majority_of_numbers_of_different_types_and_of_no_shape() -> None:
    assert majority("y", [np.float32(2), np.int64(3), np.int64(3)]) == 3.0  # type: ignore[list-item]
    single: list[NDArray[np.generic]] = [np.array(3), np.array(2), np.array(2)]
    assert majority("y", single).shape == () and majority("y", single) == 2
    assert np.isnan(majority("y", [np.array([np.nan]), np.array([np.nan])])).all()


def test_the_majority_of_large_answers_holds_nobody_up() -> None:
    chance = np.random.default_rng(0)
    arrays: list[NDArray[np.generic]] = [chance.integers(0, 3, 1_000_000) for _ in range(3)]
    began = time.thread_time()
    majority("y", arrays)
    assert time.thread_time() - began < 0.5, "element by element it takes 2 s"
