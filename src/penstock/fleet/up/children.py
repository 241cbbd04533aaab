"""Child processes that are kept running.

A child that ends is started again: at once the first time, then after pauses that double up to `_LONGEST_PAUSE_S`; one
that ran for `_SETTLED_S` begins anew. A child that never comes up at the first start is an error of the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger("penstock.up")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_SETTLED_S = 30.0


class Child:
    """One kept process. `command` is asked for at each start; `fds` stay open in it; `environment` is all it has."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._fds = tuple(fds)
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.on_start: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def ended(self) -> int | None:
        """The exit status of the last process, None while it runs."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Starts it, and keeps it running from then on."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self, number: int = signal.SIGTERM, within_s: float = 10.0) -> None:
        """Ends it with a signal, and with SIGKILL when it is still there after `within_s`."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._keeper})
        process = self._process
        if process is None:
            return
        self.send(number)
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            log.warning("child_killed", extra={"child": self.name, "seconds": within_s})
            self.send(signal.SIGKILL)
            await process.wait()

    def send(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _launch(self) -> None:
        # A session of its own: Ctrl-C at the terminal reaches `penstock up`, which stops everything in the right order.
        self._process = await asyncio.create_subprocess_exec(
            *self._command(), pass_fds=self._fds, env=self._environment, start_new_session=True
        )
        self.on_start()

    async def _keep(self) -> None:
        pause_s = 0.0
        while not self._stopping:
            assert self._process is not None
            began = time.monotonic()
            status = await self._process.wait()
            if time.monotonic() - began >= _SETTLED_S:
                pause_s = 0.0
            log.error("child_ended", extra={"child": self.name, "status": status, "again_after_s": pause_s})
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * pause_s))
            try:
                await self._launch()
            except OSError:  # no processes or no memory left; there may be some again
                log.exception("child_not_started", extra={"child": self.name})
