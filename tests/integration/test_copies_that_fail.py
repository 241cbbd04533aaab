from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.core.errors import NotReady
from penstock.core.messages import Request
from penstock.runtime.fronts import wire
from penstock.runtime.fronts.copies import Copies
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources.memory import MemorySource
from penstock.runtime.workers.inline import InlineExecutor
from penstock.telemetry.metrics import Metrics

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"


@dataclass
class Served:
    """What an engine with one inline model tells its fronts, with and without it."""

    table: wire.Table
    nothing: wire.Table
    serial: int


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    manager = Manager(Metrics(), 2)
    manager.apply(MemorySource([ModelOptions(name="m", path=str(DIGITS))]).poll())
    await manager.settled()
    loaded = manager.find("m", "")
    assert loaded.copy is not None
    places = {"m": {"": 0, "1": 0}}
    table = wire.Table(True, False, [loaded.describe((1,), {})], [loaded.copy], [True], places, {}, True)
    yield Served(table, wire.Table(True, False, [], [], [], {}, {}, True), loaded.copy.serial)
    await manager.close(5)


@pytest.mark.parametrize("error", [ValueError("of the framework"), RuntimeError("can't start new thread")])
async def test_copy_whose_framework_fails_is_told_in_the_log_and_not_tried_again(
    error: Exception, served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def load(*_: object) -> InlineExecutor:
        raise error

    monkeypatch.setattr(InlineExecutor, "load", load)
    copies = Copies(lambda _: None)
    try:
        for _ in range(3):
            copies.follow(served.table)
            async with asyncio.timeout(10):
                while copies._tasks:  # noqa: ASYNC110  # nobody is told of a copy that failed
                    await asyncio.sleep(0.005)
        assert caplog.messages.count("copy_failed") == 1
        assert copies.get(served.serial) is None
    finally:
        await copies.close()


async def test_copies_let_go_while_they_are_asked_are_all_closed_when_the_front_ends(served: Served) -> None:
    copies = Copies(lambda _: None)
    busy = []
    for _ in range(2):  # the same load, withdrawn and wished again, as tracing switched on and off does
        copies.follow(served.table)
        async with asyncio.timeout(10):
            while (copy := copies.get(served.serial)) is None:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.005)
        copy.batcher.retain(Request("m", {}))
        busy.append(copy)
        copies.follow(served.nothing)
        await asyncio.sleep(0)
    await copies.close()
    for copy in busy:
        with pytest.raises(NotReady):
            copy.batcher.retain(Request("m", {}))
