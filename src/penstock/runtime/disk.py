"""Calls that touch storage, off the loop, and in threads that nobody has to wait for.

A disk or a network share may hang for ever, and a thread in such a call cannot be ended. The loop's own pool of threads
has few, which such calls would use up, and is waited for when the process ends. These are daemons, one per call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def from_disk(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` gives back. A caller who is cancelled goes at once; the thread ends when the call does.

    Raises: what `function` raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        failure: BaseException | None = None
        try:
            result = context.run(function, *args, **kwargs)
        except BaseException as error:
            failure = error

        def settle() -> None:
            if future.done():
                return
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=work, daemon=True, name=f"disk-{getattr(function, '__name__', '')}").start()
    return await future
