"""Work that ends early when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def until(stopping: asyncio.Event, work: Coroutine[object, object, None]) -> bool:
    """Whether `work` was cut short because `stopping` was set; else it ran to its end. Its exceptions pass through."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        return True
    finally:
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
