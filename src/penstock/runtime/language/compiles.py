"""Grammars, compiled beside everything else that a front does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from penstock.core.errors import DeadlineExceeded, Overloaded
from penstock.core.language import Format, Tool
from penstock.language.grammars import PLAIN, Compiled, Compiler, ToolFormat

# One that takes its second leaves the other for those that take milliseconds; more would only share one interpreter.
_THREADS: Final = 2
_MOST_WAITING: Final = 64


@dataclass(slots=True)
class _Compiling:
    future: asyncio.Future[Compiled]
    waiting: int = 0  # how many ask for it


class Compiles:
    """The grammars of all requests behind one door, by a few threads that do nothing else: what cannot be stopped must
    not stand in the way of tokenising, metrics and files, which share the loop's own threads.

    The same grammar is compiled once for all who ask for it at the same time, and not at all when nobody does any more
    and its turn has not come. `close` is the owner's; it waits for nothing.
    """

    def __init__(self, compiler: Compiler, *, threads: int = _THREADS, most_waiting: int = _MOST_WAITING) -> None:
        self._compiler = compiler
        self._threads = ThreadPoolExecutor(threads, "grammars")
        self._most = threads + most_waiting
        self._compiling: dict[str, _Compiling] = {}
        self._closed = False

    async def compile_format(
        self, format: Format, tools: Sequence[Tool] = (), tool_choice: str = "auto", parallel: bool = True, *,
        tool_format: ToolFormat = PLAIN, where: str = "", deadline: float,
    ) -> Compiled | None:  # fmt: skip
        """See `Compiler.compile_format`. `deadline` is monotonic seconds.

        Raises: InvalidInput; Overloaded, too many others wait; DeadlineExceeded.
        """
        wanted = await asyncio.to_thread(
            self._compiler.wanted, format, tools, tool_choice, parallel, tool_format=tool_format, where=where
        )  # milliseconds, if it is long
        if wanted is None:
            return None
        found = self._compiler.kept(wanted)
        if found is not None:
            return found
        one = self._compiling.get(wanted.key)
        if one is None:
            if self._closed or len(self._compiling) >= self._most:
                raise Overloaded("too many other grammars wait to be compiled; send the request again", retry_after_s=1)
            future = asyncio.get_running_loop().run_in_executor(self._threads, self._compiler.make, wanted)
            one = self._compiling[wanted.key] = _Compiling(future)
            future.add_done_callback(lambda done: self._end(wanted.key, done))
        one.waiting += 1
        try:
            await asyncio.wait((one.future,), timeout=max(0.0, deadline - time.monotonic()))
        finally:
            one.waiting -= 1
            if not one.waiting and not one.future.done():
                del self._compiling[wanted.key]
                one.future.cancel()  # what runs goes on, and is remembered
        if self._closed and one.future.cancelled():
            raise Overloaded("the server stops: it compiles no more grammars")
        if one.future.cancelled() or not one.future.done():
            raise DeadlineExceeded("the deadline passed while the request's grammar was compiled")
        return one.future.result()

    @property
    def waiting(self) -> int:
        """How many grammars are compiled or wait for it."""
        return len(self._compiling)

    def _end(self, key: str, done: asyncio.Future[Compiled]) -> None:
        if (one := self._compiling.get(key)) is not None and one.future is done:
            del self._compiling[key]
        if not done.cancelled():
            done.exception()  # whoever asked may have left

    def close(self) -> None:
        """Compiles nothing more; what runs ends by itself."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
