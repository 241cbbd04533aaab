"""Several asks of one request, answered side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from penstock.core.language import Ask, Event

# A request with hundreds of prompts shares the engine with others: so many of its prompts at a time.
_AT_ONCE: Final = 32
_WAITING: Final = 64  # events that nobody has taken yet; then the engines are held back


async def merged(
    asks: Sequence[Ask], events_of: Callable[[Ask], AsyncGenerator[Event, None]]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of all asks, each with its ask's number. Closing it, or an error of one, ends them all.

    Raises: whatever one of them raises.
    """
    if len(asks) == 1:
        async with aclosing(events_of(asks[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue(_WAITING)
    numbers = iter(range(len(asks)))

    async def work() -> None:
        try:
            for number in numbers:
                async with aclosing(events_of(asks[number])) as events:
                    async for event in events:
                        await queue.put((number, event))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(work()) for _ in range(min(_AT_ONCE, len(asks)))]
    left = len(tasks)
    try:
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
