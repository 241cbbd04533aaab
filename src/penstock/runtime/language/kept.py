"""What one server keeps for its callers: files and batches, answers; in memory, or in a folder that outlives it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from penstock.core.responses import AnswersWishes
from penstock.runtime.language.batches import Answer, BatchRunner
from penstock.runtime.language.kept_files import Bounds, KeptFiles
from penstock.runtime.language.response_keeper import ResponseKeeper
from penstock.runtime.language.shelves import MemoryShelf, NoJournal, Shelf
from penstock.runtime.language.state import StateFolder

_LOOK_S: Final = 60.0  # between looks at what is too old


class Kept:
    """The files, batches and answers of one server. `clock` tells the time of day. Closed by its owner."""

    def __init__(
        self,
        answer: Answer,
        wishes: AnswersWishes,
        state: StateFolder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state

        def shelf(kind: str) -> Shelf:
            return MemoryShelf() if state is None else state.shelf(kind)

        journal = NoJournal() if state is None else state.journal("batches")
        bounds = Bounds()
        files = KeptFiles(bounds, clock, shelf("files"))
        self.batches = BatchRunner(answer, files, shelf("batches"), journal, clock, bounds=bounds)
        self.responses = ResponseKeeper(wishes, shelf("responses"), clock)
        self._sweeping: asyncio.Task[None] | None = None

    async def restore(self) -> None:
        """Takes up what an earlier process left. To be called before anybody asks."""
        await self.batches.restore()
        await self.responses.restore()

    async def resume(self) -> None:
        """Goes on with what was unfinished when an earlier process ended. To be called once the models answer."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        await self.batches.resume()
        await self.responses.resume()

    async def stop(self) -> None:
        """Ends all work, and returns when none is left. Answers that others still give can be kept."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait({self._sweeping})
        await self.batches.close()
        await self.responses.close()

    async def close(self) -> None:
        """Stops, and returns when all that is kept is where it stays."""
        await self.stop()
        if self._state is not None:
            await self._state.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.batches.forget_old()
            self.responses.forget_old()
