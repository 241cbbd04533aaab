"""Batches through a real worker process, and what its user code may do to them."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import pytest
from started_workers import Starter, X, one, submit

from penstock.core.errors import (
    DeadlineExceeded,
    InvalidInput,
    PenstockError,
    ServableError,
)
from penstock.runtime.workers import Batch, BatchResult


async def test_parts_are_joined_and_padded_with_the_last_row(start: Starter) -> None:
    worker = await start("double")
    result = await submit(worker, Batch([{"x": X}, {"x": X[:1] + 10}], 3, True, pad_rows=2))
    want = np.concatenate([X, X[:1] + 10, X[:1] + 10, X[:1] + 10]) * 2
    np.testing.assert_array_equal(result.outputs["y"], want)
    assert worker.batches == 1
    assert worker.state == "ready"
    assert min(result.compute_input_s, result.compute_infer_s, result.compute_output_s) > 0
    assert worker.rss_bytes > 10 << 20


async def test_strided_inputs_arrive_as_they_are(start: Starter) -> None:
    worker = await start("double")
    x = np.arange(60, dtype="f4").reshape(6, 10)[::2, ::3]
    np.testing.assert_array_equal((await submit(worker, one(x))).outputs["y"], x * 2)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), "f4"), np.zeros((3, 0), "i8"), np.float64(3).reshape(()), np.array([[True, False]]),
        np.arange(4, dtype="f2"), np.arange(4, dtype="u1"), np.arange(200_000, dtype="f8").reshape(2, -1),
        np.array([[b"", b"\x00\xff"], [b"a" * 100_000, b"b"]], dtype=object), np.arange(4, dtype=">i4"),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)  # fmt: skip
async def test_every_kind_of_tensor_comes_back_as_it_went(start: Starter, array: np.ndarray) -> None:
    worker = await start("echo")
    result = await submit(worker, Batch([{"a": array, "b": X}], 1, False))
    np.testing.assert_array_equal(result.outputs["a"], array)
    assert result.outputs["a"].shape == array.shape
    assert result.outputs["a"].dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(result.outputs["b"], X)


async def test_large_results_are_owned_and_areas_grow(start: Starter) -> None:
    worker = await start("double")
    kept = []
    for rows in (1, 40_000, 10, 400_000, 5_000_000, 40_000):
        x = np.full((rows, 2), float(rows), "f4")
        kept.append((rows, (await submit(worker, one(x))).outputs["y"]))
    for rows, y in kept:  # no later batch has written into an earlier one's result
        assert y.shape == (rows, 2)
        assert (y == 2.0 * rows).all()


async def test_ten_thousand_batches_never_mix_answers(start: Starter) -> None:
    worker = await start("double")
    random = np.random.default_rng(7)
    finished = asyncio.get_running_loop().create_future()
    count = 10_000

    def send(number: int) -> None:
        if number == count:
            finished.set_result(None)
            return
        width = 20_000 if number % 50 == 0 else int(random.integers(1, 100))
        parts = [np.full((int(random.integers(1, 4)), width), float(number + row), "f4") for row in range(3)]
        want = np.concatenate(parts) * 2

        def done(outcome: BatchResult | PenstockError) -> None:
            if not isinstance(outcome, BatchResult) or not np.array_equal(outcome.outputs["y"], want):
                finished.set_exception(AssertionError(f"batch {number}: {outcome}"))
            else:
                send(number + 1)

        worker.run(Batch([{"x": part} for part in parts], len(want), True), done)

    send(0)
    await finished
    assert worker.batches == count


@pytest.mark.parametrize(
    ("do", "kind", "text"),
    [
        ("raise", ServableError, "ValueError: the sky is green"),
        ("invalid", InvalidInput, "x must be small"),
        ("system_exit", ServableError, "SystemExit: 3"),
        ("interrupt", ServableError, "KeyboardInterrupt"),
        ("none", ServableError, "returned NoneType"),
        ("missing", ServableError, "did not return the output 'y', only \\['z'\\]"),
        ("rows", ServableError, "shape \\[1, 3\\], the batch has 2 rows"),
        ("text", ServableError, "declared is FP32"),
        ("write", ServableError, "read-only"),
    ],
)
async def test_a_batch_fails_with_what_user_code_did_and_the_worker_lives(
    start: Starter, do: str, kind: type[PenstockError], text: str
) -> None:
    worker = await start("obedient")
    with pytest.raises(kind, match=text):
        await submit(worker, one(X, do=do))
    assert worker.free_slots == 1
    np.testing.assert_array_equal((await submit(worker, one(X))).outputs["y"], X * 2)


async def test_outputs_of_a_wider_type_are_narrowed_to_the_declared_one(start: Starter) -> None:
    worker = await start("obedient")
    assert (await submit(worker, one(X, do="float64"))).outputs["y"].dtype == np.float32


async def test_the_traceback_of_user_code_is_logged(start: Starter, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start("obedient")
    with pytest.raises(ServableError):
        await submit(worker, one(X, do="raise"))
    record = next(record for record in caplog.records if record.getMessage() == "model_error")
    trace = record.trace  # type: ignore[attr-defined]
    assert "the sky is green" in trace and "in predict" in trace
    assert (record.model, record.version, record.pid) == ("m", 3, worker.pid)  # type: ignore[attr-defined]


async def test_a_batch_that_is_late_on_arrival_does_not_reach_user_code(start: Starter) -> None:
    worker = await start("obedient")
    batch = one(X, do="exit")
    batch.deadline = time.monotonic() - 1
    with pytest.raises(DeadlineExceeded):
        await submit(worker, batch)
    assert worker.state == "ready"


async def test_parameters_that_cannot_cross_blame_the_caller(start: Starter) -> None:
    worker = await start("double")
    for bad in (1 << 70, "\ud800", object()):
        with pytest.raises(InvalidInput):
            await submit(worker, one(X, p=bad))
    assert worker.free_slots == 1


async def test_large_parameters_cross_beside_any_payload(start: Starter) -> None:
    worker = await start("double")
    for rows in (1, 100_000):
        x = np.ones((rows, 3), "f4")
        result = await submit(worker, one(x, text="t" * 300_000))
        assert (result.outputs["y"] == 2).all()


async def test_as_many_rows_as_parts_may_be_many(start: Starter) -> None:
    worker = await start("double")
    parts = [{"x": np.full((1, 1), float(number), "f4")} for number in range(3000)]
    result = await submit(worker, Batch(parts, 3000, True))
    np.testing.assert_array_equal(result.outputs["y"][:, 0], np.arange(3000) * 2.0)


# Output of user code


async def test_printed_lines_are_logged_bounded_in_length_and_number(
    start: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.worker")
    worker = await start("obedient")
    await submit(worker, one(X, do="print", lines=2, width=100_000))
    await submit(worker, one(X, do="print", lines=5000))
    await worker.close(5.0)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("line ")]
    assert lines[0].startswith("line 0 xxx")
    assert max(len(line) for line in lines) <= 4096
    assert 400 < len(lines) < 1500
