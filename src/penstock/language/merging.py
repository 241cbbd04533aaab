"""Several streams of one request, side by side: its prompts, or the choices of one prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from penstock.core.language import Event

Part = TypeVar("Part")

# A request with hundreds of prompts shares the engine with others: so many of its prompts at a time.
_AT_ONCE: Final = 32
_WAITING: Final = 64  # events that nobody has taken yet; then the engines are held back


async def merged(
    parts: Sequence[Part], events_of: Callable[[Part], AsyncGenerator[Event, None]]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of all parts, each with its part's number. Closing it, or an error of one, ends them all, and it returns
    when every one is closed. A slow reader holds them back.

    Raises: whatever one of them raises.
    """
    if len(parts) == 1:
        async with aclosing(events_of(parts[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue(_WAITING)
    numbers = iter(range(len(parts)))

    async def work() -> None:
        try:
            for number in numbers:
                async with aclosing(events_of(parts[number])) as events:
                    async for event in events:
                        await queue.put((number, event))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(work()) for _ in range(min(_AT_ONCE, len(parts)))]
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
