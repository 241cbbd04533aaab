"""Several streams of events as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from penstock.core.language import Event

_MOST_WAITING = 64  # events that a slow reader has not taken, of all streams together


async def merged(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[Event]:
    """The events of all streams as they come, each stream's in order. The first error ends all; so does closing it,
    which returns when every stream is closed. A slow reader holds the streams back."""
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(_MOST_WAITING)

    async def pump(stream: AsyncIterator[Event]) -> None:
        try:
            async with aclosing(stream) as events:  # type: ignore[type-var]  # they are async generators
                async for event in events:
                    await queue.put(event)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
