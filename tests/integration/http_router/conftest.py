"""The router's front is driven on uvloop, as routers run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops that every asynchronous test runs on."""
    return {"uvloop": uvloop.new_event_loop}
