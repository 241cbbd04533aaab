"""Asks what a step names: a model of this server through the door, anything else over HTTP; with its deadline, its
retries, and patience with a full queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from penstock.core.door import Door
from penstock.core.errors import DeadlineExceeded, NotFound, NotReady, Overloaded, PenstockError, WorkerLost
from penstock.core.messages import Request, Response
from penstock.core.servable import Signature
from penstock.core.tensor import Array
from penstock.graphs.definition import ENDPOINT, MODEL, SERVICE, URL, Graph, Step, Target
from penstock.runtime.graphs.journey import Journey
from penstock.runtime.graphs.remote import Remote

T = TypeVar("T")

# Between two looks whether a full queue has room, besides those when an answer comes: others fill and empty it too.
_LOOK_S = 0.005
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.02, 1.0


class Calls:
    """Asks for one graph. `here` are the names of models of this server, as far as `SERVICE` targets name them."""

    def __init__(self, models: Door, remote: Remote, here: frozenset[str] = frozenset()) -> None:
        self.models = models
        self.remote = remote
        self._here = here
        self._rooms: dict[str, _Room] = {}

    def local(self, target: Target) -> bool:
        """Whether the target is a model of this server."""
        return target.kind == MODEL or (target.kind == SERVICE and target.name in self._here)

    def ready(self, graph: Graph) -> bool:
        """Whether every model of this server that the graph asks computes now."""
        try:
            return all(
                self.models.model_ready(step.target.name, step.target.version)
                for _, step in graph.calls()
                if self.local(step.target)
            )
        except NotFound:
            return False

    def forget(self, target: Target) -> None:
        """Has another endpoint tell anew what it takes: it may have been replaced by one of other types."""
        if target.kind in (ENDPOINT, SERVICE) and not self.local(target):
            self.remote.forget(self.url(target))

    async def step(self, journey: Journey, step: Step, ask: Callable[[Journey], Awaitable[T]]) -> T:
        """What `ask` gives, tried as often as the step says, within its time.

        Raises:
            PenstockError: of the last try, its message beginning with the step's name.
        """
        began = time.monotonic()
        if step.timeout_s is not None:
            journey = journey.until(min(journey.deadline, began + step.timeout_s))
        attempt = 0
        try:
            while True:
                try:
                    return await ask(journey)
                except PenstockError as error:
                    wait_s = min(_FIRST_RETRY_S * 2**attempt, _LONGEST_RETRY_S)
                    late = time.monotonic() + wait_s >= journey.deadline
                    if attempt >= step.retries or not error.retryable or late:
                        raise named(error, step) from None
                await asyncio.sleep(wait_s)
                attempt += 1
        finally:
            journey.times.append((step.name, time.monotonic() - began))

    async def infer(self, journey: Journey, target: Target, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The target's outputs. Raises: its errors."""
        if self.local(target):
            return (await self.submit(journey, target, dict(inputs))).outputs
        url = self.url(target)
        if not url.endswith("/infer"):
            url = f"{url}/infer"
        return await self.remote.infer(url, inputs, journey, keyed=target.kind != URL)

    def url(self, target: Target) -> str:
        """The address of a target that is elsewhere. Raises: InvalidInput when nobody said where endpoints are."""
        return target.name if target.kind == URL else self.remote.address(target.name, target.version)

    async def signature(self, journey: Journey, target: Target) -> Signature | None:
        """What the target says of itself; None of a `url`, which may be anything. Raises: its errors."""
        if self.local(target):
            return self.models.signature(target.name, target.version)
        if target.kind in (ENDPOINT, SERVICE):
            return await self.remote.signature(self.url(target), journey)
        return None

    async def submit(self, journey: Journey, target: Target, inputs: dict[str, Array]) -> Response:
        """A model of this server's answer. A full queue is waited for. Raises: its errors, DeadlineExceeded."""
        request = Request(
            target.name, inputs, target.version, parameters=dict(journey.parameters), deadline=journey.deadline
        )
        request.trace = journey.trace
        return await self.send(request)

    async def send(self, request: Request) -> Response:
        """As `submit`, of a request that is already made."""
        room = self._rooms.get(request.model)
        if room is None:
            room = self._rooms[request.model] = _Room()
        waited = False
        while True:
            if room.waiting and not waited:
                await room.wait(request.deadline, behind=True)
            request.timings.received = time.monotonic()
            try:
                response = await self.models.submit(request)
            except Overloaded:
                waited = True
                await room.wait(request.deadline, behind=False)
                continue
            except (PenstockError, asyncio.CancelledError):
                room.next()
                raise
            room.next()
            return response


class _Room:
    """Those who wait for room in one model's queue, in the order in which they came."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[None]] = deque()
        self._look: asyncio.TimerHandle | None = None

    async def wait(self, deadline: float, *, behind: bool) -> None:
        """Returns when it is time to try: behind all others, or, for one who tried in vain, before them.

        Raises:
            DeadlineExceeded: it never was.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        if behind:
            self.waiting.append(turn)
        else:
            self.waiting.appendleft(turn)
        if self._look is None:
            self._look = loop.call_later(_LOOK_S, self._again, loop)
        left_s = deadline - time.monotonic()
        try:
            async with asyncio.timeout(left_s if left_s < 1e9 else None):
                await turn
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while it waited for room in the model's queue") from None
        finally:
            if turn in self.waiting:
                self.waiting.remove(turn)

    def next(self) -> None:
        """Lets the first try."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look = None
        self.next()
        if self.waiting:
            self._look = loop.call_later(_LOOK_S, self._again, loop)


def named(error: PenstockError, step: Step) -> PenstockError:
    """The same error, which says at which step it happened."""
    who = "" if step.target.name == step.name else f" ({step.target})"
    message = f"step '{step.name}'{who}: {error.message}"
    if isinstance(error, WorkerLost):
        return WorkerLost(message, retry_after_s=error.retry_after_s, doubtful=error.doubtful, died_at=error.died_at)
    if isinstance(error, NotFound):  # the caller asked for the graph, and that is here
        return NotReady(message)
    return type(error)(message, retry_after_s=error.retry_after_s)
