"""The executor that runs batches in the front's own loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from penstock.core.errors import InvalidInput, PenstockError, ServableError, WorkerLost
from penstock.core.servable import LoadContext, Signature, Tensors
from penstock.core.tensor import TensorSpec
from penstock.runtime.adapters import echo
from penstock.runtime.workers import Batch, BatchResult
from penstock.runtime.workers.inline import InlineExecutor

X = np.arange(6, dtype="f4").reshape(2, 3)


class Double:
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),), "test", True, inline_safe=True
    )

    def __init__(self) -> None:
        self.seen: list[Tensors] = []
        self.closed = 0

    def predict(self, inputs: Tensors, parameters: Mapping[str, object]) -> Tensors:
        self.seen.append(inputs)
        if parameters.get("fail"):
            raise ValueError("no")
        if parameters.get("invalid"):
            raise InvalidInput("bad x")
        return {"y": inputs["x"] * 2}  # type: ignore[operator]

    def close(self) -> None:
        self.closed += 1


def result(outcome: BatchResult | PenstockError) -> BatchResult:
    assert isinstance(outcome, BatchResult)
    return outcome


def test_a_batch_of_one_part_is_not_copied() -> None:
    servable = Double()
    executor = InlineExecutor(servable, LoadContext("m", 1))
    inputs = {"x": X}
    outcome = result(executor.run_now(Batch([inputs], 2, True)))
    assert servable.seen[0] is inputs
    np.testing.assert_array_equal(outcome.outputs["y"], X * 2)
    assert executor.batches == 1


def test_parts_are_joined_and_padded_with_the_last_row() -> None:
    executor = InlineExecutor(Double(), LoadContext("m", 1))
    outcome = result(executor.run_now(Batch([{"x": X}, {"x": X + 10}], 4, True, pad_rows=2)))
    want = np.concatenate([X, X + 10, (X + 10)[-1:], (X + 10)[-1:]]) * 2
    np.testing.assert_array_equal(outcome.outputs["y"], want)


def test_later_batches_do_not_change_earlier_results() -> None:
    executor = InlineExecutor(Double(), LoadContext("m", 1))
    first = result(executor.run_now(Batch([{"x": X}, {"x": X}], 4, True)))
    executor.run_now(Batch([{"x": X + 99}, {"x": X}], 4, True))
    np.testing.assert_array_equal(first.outputs["y"], np.concatenate([X, X]) * 2)


def test_errors_are_returned_with_whose_fault_it_is() -> None:
    executor = InlineExecutor(Double(), LoadContext("m", 1))
    failed = executor.run_now(Batch([{"x": X}], 2, True, parameters={"fail": True}))
    assert isinstance(failed, ServableError)
    assert str(failed) == "ValueError: no"
    blamed = executor.run_now(Batch([{"x": X}], 2, True, parameters={"invalid": True}))
    assert type(blamed) is InvalidInput
    mismatched = executor.run_now(Batch([{"x": X}], 5, True))
    assert isinstance(mismatched, ServableError)
    assert "5 rows" in str(mismatched)


async def test_run_calls_done_later() -> None:
    executor = InlineExecutor(Double(), LoadContext("m", 1))
    done: asyncio.Future[BatchResult | PenstockError] = asyncio.get_running_loop().create_future()
    executor.run(Batch([{"x": X}], 2, True), done.set_result)
    assert not done.done()
    np.testing.assert_array_equal(result(await done).outputs["y"], X * 2)


async def test_it_loads_through_an_adapter_and_closes_once() -> None:
    context = LoadContext("m", 1, inputs=Double.signature.inputs)
    executor = await InlineExecutor.load(echo.plug, Path("nowhere"), context)
    np.testing.assert_array_equal(result(executor.run_now(Batch([{"x": X}], 2, True))).outputs["x"], X)
    servable = Double()
    executor = InlineExecutor(servable, LoadContext("m", 1))
    await executor.close(1.0)
    await executor.close(1.0)
    assert servable.closed == 1
    assert executor.free_slots == 0
    assert isinstance(executor.run_now(Batch([{"x": X}], 2, True)), WorkerLost)


async def test_a_stream_of_an_ordinary_model_is_its_one_answer() -> None:
    executor = InlineExecutor(Double(), LoadContext("m", 1))
    items = [item async for item in executor.stream({"x": X}, {})]
    assert len(items) == 1
    with pytest.raises(ServableError, match="no"):
        await anext(executor.stream({"x": X}, {"fail": True}))


async def test_time_of_a_batch_is_a_median_that_a_few_long_ones_do_not_move() -> None:
    class Sometimes(Double):
        calls = 0

        def predict(self, inputs: Tensors, parameters: Mapping[str, object]) -> Tensors:
            self.calls += 1
            if self.calls % 10 == 0:
                time.sleep(0.01)
            return super().predict(inputs, parameters)

    executor = InlineExecutor(Sometimes(), LoadContext("m", 1))
    for _ in range(31):
        executor.run_now(Batch([{"x": X}], 2, True))
    assert executor.compute_s == 0
    executor.run_now(Batch([{"x": X}], 2, True))
    assert 0 < executor.compute_s < 0.005
    executor.forget_times()
    assert executor.compute_s == 0


class Counting(Double):
    """Streams for ever; the first item after `close` would use what is gone."""

    signature = Signature(
        (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),), "test", False, streaming=True,
        inline_safe=True,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def answer(self, inputs: Tensors, parameters: Mapping[str, object]) -> Iterator[Tensors]:
        try:
            while True:
                assert not self.closed
                yield {"y": inputs["x"]}
        finally:
            assert not self.closed, "the stream ends before the model does"
            self.ended += 1


async def test_closing_ends_the_streams_under_way_first() -> None:
    servable = Counting()
    executor = InlineExecutor(servable, LoadContext("m", 1))
    streams = [executor.stream({"x": X}, {}) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    await executor.close(0.0)
    assert (servable.ended, servable.closed) == (3, 1)
    for stream in streams:
        with pytest.raises(WorkerLost, match="closed"):
            await anext(stream)
