"""What several answers are together: the mean of numbers, or the value most gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.tensor import Array


def combined(how: str, answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """`average` or `majority` of each output that every answer has, in the first one's order.

    Raises:
        InvalidInput: there is no such output, or an output's shapes differ.
    """
    names = [name for name in answers[0] if all(name in answer for answer in answers)] if answers else []
    if not names:
        given = "; ".join(", ".join(answer) or "nothing" for answer in answers) or "nothing"
        raise InvalidInput(f"there is no output that all of the steps gave, to make the {how} of; they gave: {given}")
    combine = average if how == "average" else majority
    return {name: combine(name, [answer[name] for answer in answers]) for name in names}


def average(name: str, arrays: Sequence[Array]) -> Array:
    """The elementwise mean, of floats in their own type, of integers in FP64. Raises: InvalidInput."""
    shape = _shape(name, arrays)
    kind = np.result_type(*arrays) if all(array.dtype.kind in "biuf" for array in arrays) else np.dtype(object)
    if kind.kind == "O":
        raise InvalidInput(f"output '{name}' holds text, which has no average; use majority")
    result = kind if kind.kind == "f" else np.dtype(np.float64)
    total = np.zeros(shape, np.float64)
    for array in arrays:
        total += array.astype(np.float64)
    return (total / len(arrays)).astype(result)


def majority(name: str, arrays: Sequence[Array]) -> Array:
    """For each element the value that most gave; of equally many, that of the earliest step. Raises: InvalidInput."""
    shape = _shape(name, arrays)
    kind = np.dtype(object) if any(array.dtype.kind == "O" for array in arrays) else np.result_type(*arrays)
    answers = np.stack([array.astype(kind).reshape(-1) for array in arrays])
    # Array by array, not element by element: graphs run on the loop that answers everybody.
    votes = np.ones(answers.shape, np.intp)
    for one, other in combinations(range(len(answers)), 2):
        same = (answers[one] == answers[other]).astype(bool)
        votes[one] += same
        votes[other] += same
    won = votes.argmax(axis=0)  # ties: the first
    out: Array = answers[won, np.arange(answers.shape[1])].reshape(shape)
    return out


def _shape(name: str, arrays: Sequence[Array]) -> tuple[int, ...]:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InvalidInput(f"output '{name}' has the shapes {sorted(map(list, shapes))} in different steps")
    return arrays[0].shape
