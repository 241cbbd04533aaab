"""What one server keeps for its callers: files and batches, answers; in memory, or in a folder that outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from penstock.core.responses import AnswersWishes
from penstock.runtime.language.batches import Answer, BatchRunner
from penstock.runtime.language.kept_files import Bounds, KeptFiles
from penstock.runtime.language.kept_responses import ResponseKeeper
from penstock.runtime.language.shelves import MemoryShelf, NoJournal

_LOOK_S: Final = 60.0  # between looks at what is too old


class Kept:
    """The files, batches and answers of one server. `clock` tells the time of day. Closed by its owner."""

    def __init__(
        self, answer: Answer, wishes: AnswersWishes, folder: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        bounds = Bounds()
        files = KeptFiles(bounds, clock, MemoryShelf())
        self.batches = BatchRunner(answer, files, MemoryShelf(), NoJournal(), clock, bounds=bounds)
        self.responses = ResponseKeeper(wishes, MemoryShelf(), clock)
        self._sweeping: asyncio.Task[None] | None = None

    async def resume(self) -> None:
        """Goes on with what was unfinished when an earlier process ended. To be called once the models answer."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def close(self) -> None:
        """Ends all work, and returns when none is left."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping
        await self.batches.close()
        await self.responses.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.batches.forget_old()
            self.responses.forget_old()
