"""Which generations may begin: no more tokens at once than the engines' caches hold, no more sequences than they run.

The rest waits here, not in an engine: urgent ones first; within a level fairly among callers, by tokens and weights
(`core.fair`). What waits is bounded by tokens. Of too much, the newest request of the caller who has most waiting is
refused, beginning with the least urgent level, so that a flood keeps nobody else out.

A generation is counted as its prompt and what it is likely to put out: what it may at most, or twice what the last ones
did, whichever is less. Engines cope with a wrong guess (they preempt); a sum of worst cases would leave them idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from penstock.core.errors import DeadlineExceeded, Overloaded
from penstock.core.fair import FairQueue, Ticket
from penstock.core.messages import NO_DEADLINE

_DEFAULT_LEVEL = 1 << 31  # V2's level 0; levels that are asked for count upwards from the most urgent
_FIRST_GUESS = 256.0  # tokens of output, before anything was seen
_LEARN = 0.05  # weight of the newest output in the running mean
_MOST_WAITING = 100_000  # requests; tokens are the real bound


@dataclass(slots=True)
class Admitted:
    """A generation that may run. Its owner says with `generated` what came out of it."""

    cost: int
    generated: int | None = None


class Admission:
    """The gate of one model version. One event loop's; nothing here blocks."""

    def __init__(
        self,
        most_tokens: int,
        most_running: int,
        most_waiting_tokens: int,
        weight: Callable[[str], float] | None = None,
    ) -> None:
        """`most_tokens` 0 is unknown: only `most_running` bounds then."""
        self.most_tokens = most_tokens
        self.most_running = most_running
        self.running = 0
        self.running_tokens = 0
        self.waiting = 0
        self.waiting_tokens = 0
        self._most_waiting_tokens = most_waiting_tokens
        self._weight = weight or _equal
        self._levels: dict[int, FairQueue[asyncio.Future[None]]] = {}
        self._output = _FIRST_GUESS
        self._tokens_per_s = 0.0
        self._released_at = 0.0

    def cost(self, prompt_tokens: int, max_tokens: int) -> int:
        """What a generation is counted as."""
        return prompt_tokens + min(max_tokens, int(2 * self._output))

    @asynccontextmanager
    async def admitted(
        self, caller: str, prompt_tokens: int, max_tokens: int, *, priority: int = 0, deadline: float = NO_DEADLINE
    ) -> AsyncIterator[Admitted]:
        """Inside, the generation may run.

        Raises:
            Overloaded: too many tokens wait, and this caller's are the most.
            DeadlineExceeded: it passed while the request waited.
        """
        cost = self.cost(prompt_tokens, max_tokens)
        if self.waiting or not self._fits(cost):
            await self._wait(caller, cost, priority or _DEFAULT_LEVEL, deadline)
        else:
            self._begin(cost)
        admitted = Admitted(cost)
        try:
            yield admitted
        finally:
            self._end(admitted)

    def resize(self, most_tokens: int, most_running: int) -> None:
        """There are more or fewer engines now."""
        self.most_tokens, self.most_running = most_tokens, most_running
        self._pump()

    async def _wait(self, caller: str, cost: int, level: int, deadline: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._levels.get(level)
        if queue is None:
            queue = self._levels[level] = FairQueue(_MOST_WAITING)
        ticket, pushed_out = queue.put(caller, self._weight(caller), future, deadline, float(cost))
        self.waiting += 1
        self.waiting_tokens += cost
        if pushed_out is not None:
            self._refuse(pushed_out)
        while self.waiting_tokens > self._most_waiting_tokens and self.waiting:
            self._refuse(self._shed())
        self._pump()  # an urgent one passes a large one that waits for room
        timer = None
        if deadline != NO_DEADLINE:
            left_s = deadline - time.monotonic()
            timer = asyncio.get_running_loop().call_later(left_s, _late, future)
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._end(Admitted(cost))  # it was let in at the moment at which it left
            elif queue.cancel(ticket):
                self._left(ticket)
                self._pump()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _fits(self, cost: int) -> bool:
        if self.running == 0:
            return True  # alone it may be larger than the guess of what fits
        if self.running >= self.most_running:
            return False
        return not self.most_tokens or self.running_tokens + cost <= self.most_tokens

    def _begin(self, cost: int) -> None:
        self.running += 1
        self.running_tokens += cost

    def _end(self, admitted: Admitted) -> None:
        self.running -= 1
        self.running_tokens -= admitted.cost
        if admitted.generated is not None:
            self._output += _LEARN * (admitted.generated - self._output)
            now = time.monotonic()
            if self._released_at:
                rate = admitted.cost / max(now - self._released_at, 1e-3)
                self._tokens_per_s += _LEARN * (rate - self._tokens_per_s)
            self._released_at = now
        self._pump()

    def _pump(self) -> None:
        """Lets in whoever is next, as long as there is room for them: nobody overtakes a large one that waits."""
        for level in sorted(self._levels):
            queue = self._levels[level]
            while (ticket := queue.head()) is not None:
                if not self._fits(int(ticket.cost)):
                    return
                taken = queue.take()
                assert taken is ticket
                self._left(ticket)
                if not ticket.item.done():
                    self._begin(int(ticket.cost))
                    ticket.item.set_result(None)
            del self._levels[level]

    def _shed(self) -> Ticket[asyncio.Future[None]]:
        for level in sorted(self._levels, reverse=True):
            if ticket := self._levels[level].shed():
                return ticket
        raise AssertionError("tokens wait, but no request")

    def _refuse(self, ticket: Ticket[asyncio.Future[None]]) -> None:
        self._left(ticket)
        if not ticket.item.done():
            wait_s = self.waiting_tokens / self._tokens_per_s if self._tokens_per_s else 1.0
            ticket.item.set_exception(
                Overloaded(
                    f"{self.waiting_tokens} tokens wait for the model, and max_queued_tokens is "
                    f"{self._most_waiting_tokens}",
                    retry_after_s=min(max(wait_s, 1.0), 60.0),
                )
            )

    def _left(self, ticket: Ticket[asyncio.Future[None]]) -> None:
        self.waiting -= 1
        self.waiting_tokens -= int(ticket.cost)


def _late(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the deadline passed while the request waited for the model"))


def _equal(caller: str) -> float:
    return 1.0
