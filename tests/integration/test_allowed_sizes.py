from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from penstock.core.messages import Request
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources.memory import MemorySource
from penstock.telemetry.metrics import Metrics

MODEL = """
import penstock

@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"}, batch=penstock.Batch(sizes=(2, 4)))
def model(x):
    if len(x) not in (2, 4):
        raise ValueError(f"{len(x)} rows")
    return {"y": x}
"""


async def test_model_is_run_with_its_own_sizes_only_from_its_warm_up_on(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    manager = Manager(Metrics(), 2)
    manager.apply(MemorySource([ModelOptions(name="m", path=f"{tmp_path}/model.py:model")]).poll())
    await manager.settled()
    try:
        assert manager.failures() == {}
        batcher = manager.find("m", "").batcher
        asked = [Request("m", {"x": np.array([float(value)])}, deadline=time.monotonic() + 20) for value in range(9)]
        answers = [await future for future in [batcher.submit(each, None, 1) for each in asked]]
        assert [answer.outputs["y"].tolist() for answer in answers] == [[float(value)] for value in range(9)]
    finally:
        await manager.close(5)
