"""The worker of asyncio servables: several batches and streams under way at once, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncGenerator, Callable

from penstock.core.errors import Cancelled, DeadlineExceeded
from penstock.core.servable import PouringServable, Servable, StreamingServable, Tensors
from penstock.runtime.workers import answers, frame
from penstock.runtime.workers.calling import Calling
from penstock.runtime.workers.channel import Channel, Received
from penstock.runtime.workers.child import Flow, failed
from penstock.runtime.workers.outlet import Outlet, Sluice
from penstock.runtime.workers.pulse import Pulse
from penstock.runtime.workers.window import window_of


def serve(channel: Channel, servable: Servable, pulse: Pulse) -> None:
    """Returns when told to close and everything held is answered, or when the front is gone."""
    asyncio.run(Server(channel, servable, pulse).serve())


class Server:
    """One task for each batch or stream."""

    def __init__(self, channel: Channel, servable: Servable, pulse: Pulse) -> None:
        self._channel = channel
        self._pulse = pulse
        self._servable = servable
        self._window = window_of(servable.signature)
        self._sluice = Sluice(channel)
        self._jobs: dict[int, Job] = {}
        self._credits: dict[int, Callable[[int], None]] = {}  # who is told what the reader of a stream has taken
        self._closing = asyncio.Event()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._readable)
        await self._closing.wait()
        while self._jobs:
            await asyncio.wait([job.task for job in self._jobs.values()])
        loop.remove_reader(self._channel.fileno())

    def _readable(self) -> None:
        for _ in range(64):  # then other callbacks get their turn
            try:
                received = self._channel.receive(wait=False)
            except BlockingIOError:
                return
            if received is None:
                self._channel_lost()
                return
            self._take(received)

    def _take(self, received: Received) -> None:
        message = received.message
        if isinstance(message, frame.Run):
            self._channel.release(received.slot)
            job = self._jobs[message.id] = Job()
            job.task = asyncio.get_running_loop().create_task(self._work(message, received, job))
        elif isinstance(message, frame.Credit):
            credit = self._credits.get(message.id)
            if credit is not None:
                credit(message.taken)
        elif isinstance(message, frame.Cancel):
            cancelled = self._jobs.get(message.id)
            if cancelled is not None:
                cancelled.cancelled = True
                # A task that is cancelled before it began never answers: it sees the flag when it begins.
                if cancelled.begun:
                    cancelled.task.cancel()
        elif isinstance(message, frame.Close):
            self._closing.set()

    def _channel_lost(self) -> None:
        for job in self._jobs.values():
            job.cancelled = True
            job.task.cancel()
        self._jobs.clear()
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._closing.set()

    async def _work(self, run: frame.Run, received: Received, job: Job) -> None:
        job.begun = True
        try:
            Calling(run)  # in this task's own context, which ends with it
            if job.cancelled:
                raise Cancelled("the caller left")
            inputs = frame.unpack(run.tensors, received.payload, owned=False)
            self._pulse.begin(run.id)  # tasks begin in the order in which they are made
            left_s = run.deadline - time.monotonic()
            limit = asyncio.timeout(left_s if left_s != float("inf") else None)
            try:
                async with limit:
                    if run.stream and isinstance(self._servable, PouringServable):
                        await self._pour(run, self._servable, received.slot, inputs)
                    elif run.stream:
                        await self._answer(run, received.slot, inputs, job)
                    else:
                        await self._predict(run, received.slot, inputs)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineExceeded("the deadline passed while the model computed") from None
        except BaseException as error:  # user code's SystemExit and KeyboardInterrupt must not end the loop
            if isinstance(error, asyncio.CancelledError) and job.cancelled:
                error = Cancelled("the caller left")
            # The front may be gone by now; the reader sees to that.
            with contextlib.suppress(OSError):
                self._sluice.flush()
                self._channel.send(failed(run.id, error), received.slot)
        finally:
            self._credits.pop(run.id, None)
            self._jobs.pop(run.id, None)

    async def _predict(self, run: frame.Run, slot: int, inputs: Tensors) -> None:
        entered = time.monotonic()
        returned = self._servable.predict(inputs, run.parameters)
        if inspect.isawaitable(returned):
            returned = await returned
        outputs = answers.checked(returned, self._servable.signature, run.rows)
        left = time.monotonic()
        payload = frame.pack((outputs,))
        self._channel.send(frame.Result(run.id, payload.heads, entered, left), slot, payload)

    async def _pour(self, run: frame.Run, servable: PouringServable, slot: int, inputs: Tensors) -> None:
        outlet = Outlet(run.id, self._sluice, self._window)
        self._credits[run.id] = outlet.credit
        try:
            await servable.pour(inputs, run.parameters, outlet)
        finally:
            outlet.close()
        self._sluice.flush()
        self._channel.send(frame.End(run.id), slot)

    async def _answer(self, run: frame.Run, slot: int, inputs: Tensors, job: Job) -> None:
        flow = AsyncFlow(self._window)
        self._credits[run.id] = flow.credit
        items = self._items(run, inputs)
        async with contextlib.aclosing(items):
            async for item in items:
                if job.cancelled:  # user code that swallowed the cancellation
                    break
                payload = frame.pack((answers.checked(item, self._servable.signature, -1),))
                message = frame.Item(run.id, payload.heads)
                shared = self._channel.shares(message, payload)
                await flow.room(shared)
                self._channel.send(message, slot, payload)
                flow.sent(shared)
        self._channel.send(frame.End(run.id), slot)

    async def _items(self, run: frame.Run, inputs: Tensors) -> AsyncGenerator[object]:
        if not isinstance(self._servable, StreamingServable):
            one = self._servable.predict(inputs, run.parameters)
            yield await one if inspect.isawaitable(one) else one
            return
        answer = self._servable.answer(inputs, run.parameters)
        close = getattr(answer, "aclose", None) or getattr(answer, "close", None)
        try:
            if hasattr(answer, "__aiter__"):
                async for item in answer:
                    yield item
            else:
                for item in answer:
                    yield item
                    await asyncio.sleep(0)  # a cancel and the other streams get their turn
        finally:
            closed = close() if close is not None else None
            if inspect.isawaitable(closed):
                await closed


class Job:
    """A batch or stream that is worked on."""

    __slots__ = ("begun", "cancelled", "task")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.begun = self.cancelled = False


class AsyncFlow(Flow):
    """A Flow that can be waited for."""

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self._moved = asyncio.Event()

    def credit(self, taken: int) -> None:
        """The reader has taken so many items."""
        self.taken = max(self.taken, taken)
        self._moved.set()

    async def room(self, shared: bool) -> None:
        """Returns when an item may be sent."""
        while not self.may_send(shared):
            self._moved.clear()
            await self._moved.wait()
