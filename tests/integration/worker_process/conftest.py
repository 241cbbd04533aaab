"""Worker processes that end with their test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from started_workers import Starter


@pytest.fixture
async def start() -> AsyncIterator[Starter]:
    starter = Starter()
    yield starter
    for worker in starter.workers:
        worker.kill("the test is over")
        await worker.close(0.0)
