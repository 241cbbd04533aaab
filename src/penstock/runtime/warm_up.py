"""Made-up inputs, and what they teach about a model before it takes traffic: that it answers, how long it takes,
whether its rows are independent of each other, and whether joining rows saves anything."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.core.errors import InvalidInput, LoadError, PenstockError, ServableError
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec
from penstock.runtime.batching import policy
from penstock.runtime.workers import Batch, BatchResult

# Lengths tried for axes of any length, until the model answers: many image models refuse 1, many text models 224.
_LENGTHS = (1, 16, 32, 64, 224)
RUNS = 5  # of each size that is timed
_ENOUGH_S = 0.5  # a slow model is told from a fast one by one run, and its start should not wait for more
_MANY = 8  # rows of the larger batch that is timed
# Inputs are made in the front's loop and memory: with several open axes the longer lengths would need gigabytes. Enough
# for an image of 1,000 pixels a side.
_MOST_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Findings:
    """What warm-up found. Times are the best of five runs, in seconds, inside the servable; None: not measured."""

    answered: bool
    one_row_s: float | None = None
    many_rows_s: float | None = None  # of a batch of 8 rows
    rows_independent: bool = True
    worth_joining: bool = True


Run = Callable[[Batch], Awaitable[BatchResult]]


def inputs(specs: Sequence[TensorSpec], rows: int, length: int, seed: int = 0) -> dict[str, Array]:
    """Made-up values for every input: floats from 0 to 1, 0/1 integers (safe as indexes), short texts.
    Axis 0 has `rows` when it is of any length; other axes of any length have `length`."""
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for spec in specs:
        shape = tuple((rows if axis == 0 else length) if size < 0 else size for axis, size in enumerate(spec.shape))
        dtype = NUMPY_OF[spec.datatype]
        if spec.datatype == "BYTES":
            text = np.empty(shape, dtype=object)
            text[...] = b"warm up"
            made[spec.name] = text
        elif dtype.kind == "f":
            made[spec.name] = random.random(shape).astype(dtype)
        else:
            made[spec.name] = random.integers(0, 2, shape).astype(dtype)
    return made


async def warm_up(
    signature: Signature, run_batch: Run, *, check_rows: bool, max_rows: int, sizes: Sequence[int] = ()
) -> Findings:
    """What `run_batch` shows about a freshly loaded servable. Batches are padded up to one of `sizes`, as requests are.

    Raises:
        LoadError: every input is fully known, and the model still fails to answer.
    """

    async def run(batch: Batch) -> BatchResult:
        if batch.joined:
            batch.pad_rows = policy.padding(batch.rows, sizes)
        return await run_batch(batch)

    specs = [spec for spec in signature.inputs if not spec.optional]
    if not specs:
        return Findings(answered=False)
    length = await _first_answer(specs, run, signature.batchable)
    if length is None:
        return Findings(answered=False)
    if signature.streaming:
        return Findings(answered=True)  # one answer shows that it works; how long a stream takes is its own affair
    try:
        many = min(_MANY, max_rows) if signature.batchable else 1
        one_row_s, many_rows_s = await _times(specs, length, many, run, signature.batchable)
        if many < 2:
            return Findings(True, one_row_s)
    except (ServableError, InvalidInput):  # it answers, but not every value: there is nothing to time
        return Findings(True)
    independent = not check_rows or await _rows_independent(specs, length, run)
    return Findings(True, one_row_s, many_rows_s, independent, policy.worth_joining(one_row_s, many_rows_s, many))


async def _first_answer(specs: Sequence[TensorSpec], run: Run, batchable: bool) -> int | None:
    """The first length of open axes with which the model answers; None when none does and the guess may be to blame."""
    first_axis = 1 if batchable else 0
    guessed = any(size < 0 for spec in specs for size in spec.shape[first_axis:])
    failure: PenstockError | None = None
    for length in _LENGTHS if guessed else _LENGTHS[:1]:
        if length > 1 and _elements(specs, length) > _MOST_ELEMENTS:
            break
        try:
            await run(Batch([inputs(specs, 1 if batchable else length, length)], 1, batchable))
            return length
        except (ServableError, InvalidInput) as error:
            failure = error
    if guessed:
        return None
    raise LoadError(
        f"the model loads but fails on made-up inputs of its own signature: {failure}. "
        "If it needs real values, set `warm_up = false` for it"
    )


def _elements(specs: Sequence[TensorSpec], length: int) -> int:
    """How many the largest input has when its open axes are of this length."""
    return max(
        math.prod(
            1 if axis == 0 and size < 0 else abs(size) * (length if size < 0 else 1)
            for axis, size in enumerate(spec.shape)
        )
        for spec in specs
    )


async def _times(specs: Sequence[TensorSpec], length: int, many: int, run: Run, batchable: bool) -> tuple[float, float]:
    """The best times of one row and of `many`, in seconds. Taken in turns, so that a machine that is busy for a while
    is busy for both."""
    one, several = inputs(specs, 1, length), inputs(specs, many, length)
    times: list[tuple[float, float]] = []
    spent_s = 0.0
    for _ in range(RUNS):
        first = await run(Batch([one], 1, batchable))
        second = await run(Batch([several], many, True)) if many > 1 else first
        times.append((first.compute_infer_s, second.compute_infer_s))
        spent_s += first.compute_infer_s + second.compute_infer_s
        if spent_s > _ENOUGH_S:
            break
    return min(time for time, _ in times), min(time for _, time in times)


async def _rows_independent(specs: Sequence[TensorSpec], length: int, run: Run) -> bool:
    """Whether two requests joined give what each gives alone, up to rounding: axis 0 might be time, not a batch."""
    first, second = inputs(specs, 1, length, seed=1), inputs(specs, 1, length, seed=2)
    try:
        both = (await run(Batch([first, second], 2, True))).outputs
        apart = [(await run(Batch([part], 1, True))).outputs for part in (first, second)]
    except (ServableError, InvalidInput):
        return False
    for name, joined in both.items():
        for row, alone in enumerate(apart):
            expected, got = alone[name][:1], joined[row : row + 1]  # behind them may be padding
            if got.shape != expected.shape:
                return False
            if expected.dtype.kind == "f":
                if not np.allclose(got, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
                    return False
            elif not np.array_equal(got, expected):
                return False
    return True
