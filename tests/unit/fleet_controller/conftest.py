"""A fleet in memory, over a clock that is an argument."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_fleet import MemoryFleet


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[MemoryFleet]:
    async with MemoryFleet(tmp_path) as fleet:
        yield fleet
