from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.runtime.fronts import wire
from penstock.runtime.fronts.copies import Copies
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources.memory import MemorySource
from penstock.runtime.workers.inline import InlineExecutor
from penstock.telemetry.metrics import Metrics

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"


@pytest.mark.parametrize("error", [ValueError("of the framework"), RuntimeError("can't start new thread")])
async def test_copy_whose_framework_fails_is_told_in_the_log_and_not_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager(Metrics(), 2)
    manager.apply(MemorySource([ModelOptions(name="m", path=str(DIGITS))]).poll())
    await manager.settled()
    loaded = manager.find("m", "")
    assert loaded.copy is not None
    description = loaded.describe((1,), {})
    table = wire.Table(True, False, [description], [loaded.copy], [True], {"m": {"": 0, "1": 0}}, {}, True)

    async def load(*_: object) -> InlineExecutor:
        raise error

    monkeypatch.setattr(InlineExecutor, "load", load)
    copies = Copies(lambda _: None)
    try:
        for _ in range(3):
            copies.follow(table)
            async with asyncio.timeout(10):
                while copies._tasks:  # noqa: ASYNC110  # nobody is told of a copy that failed
                    await asyncio.sleep(0.005)
        assert caplog.messages.count("copy_failed") == 1
        assert copies.get(loaded.copy.serial) is None
    finally:
        await copies.close()
        await manager.close(5)
