from __future__ import annotations

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.servable import Signature
from penstock.core.tensor import TensorSpec
from penstock.runtime.warm_up import warm_up
from penstock.runtime.workers import Batch, BatchResult


def signature(shape: tuple[int, ...]) -> Signature:
    return Signature((TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", (-1,)),), "test", batchable=True)


async def test_a_model_with_many_open_axes_is_not_guessed_at_with_gigabytes() -> None:
    sizes: list[int] = []

    async def refuse(batch: Batch) -> BatchResult:
        sizes.append(batch.parts[0]["x"].size)
        raise InvalidInput("the model wants 3 channels")

    findings = await warm_up(signature((-1, -1, -1, -1, -1)), refuse, check_rows=False, max_rows=8)
    assert not findings.answered
    assert max(sizes) <= 1 << 22


async def test_warm_up_runs_the_allowed_sizes_only() -> None:
    seen: list[int] = []

    async def sum_rows(batch: Batch) -> BatchResult:
        x = np.concatenate([part["x"] for part in batch.parts])
        x = np.concatenate([x, np.repeat(x[-1:], batch.pad_rows, axis=0)])
        seen.append(len(x))
        return BatchResult({"y": x.sum(axis=1)}, 0.0, 0.001, 0.0)

    findings = await warm_up(signature((-1, 4)), sum_rows, check_rows=True, max_rows=8, sizes=(4, 8))
    assert (findings.answered, findings.rows_independent) == (True, True)
    assert set(seen) == {4, 8}
