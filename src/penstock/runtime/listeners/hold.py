"""Lets the stream of new gRPC calls run dry before the port closes.

grpc takes calls one at a time from a queue of its own, and ends with CANCELLED what is in that queue when it is told
to stop: a code that says "you left" to callers who did not. Most callers have one call under way and send the next one
when it is answered. So, for a moment before the stop, calls that begin are held, not answered: soon nobody has another
one to send, the queue is empty, and the stop finds nothing to cancel. Then those that were held are answered as all
others in flight. Callers who send without waiting for answers may still meet it.
"""

from __future__ import annotations

import asyncio

# No call for so long: what is on its way from a caller on the same network has come. And how long to wait for that.
_QUIET_S, _LONGEST_S = 0.02, 0.2


class Hold:
    """Counts the calls that begin, and holds them when it is told to. Belongs to one loop."""

    def __init__(self) -> None:
        self.begun = 0
        self.holding = False
        self._released = asyncio.Event()

    async def wait(self) -> None:
        """Returns when calls are let go again."""
        await self._released.wait()

    async def run_dry(self, longest_s: float) -> None:
        """Holds the calls that begin from now on, and returns when hardly any do, or after `longest_s` at most."""
        self.holding = True
        loop = asyncio.get_running_loop()
        end = loop.time() + min(longest_s, _LONGEST_S)
        begun = -1
        while begun != self.begun and loop.time() < end:
            begun = self.begun
            await asyncio.sleep(_QUIET_S)

    def release(self) -> None:
        """Lets go of all that are held, and holds no more."""
        self.holding = False
        self._released.set()
