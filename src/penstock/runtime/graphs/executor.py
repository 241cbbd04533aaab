"""Where a graph's requests run: tasks on the loop, in place of a worker. See `runtime.workers.Executor`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from penstock.core.errors import Cancelled, Internal, InvalidInput, PenstockError, Unsupported
from penstock.core.graph_calls import (
    BODIES,
    FEEDBACK,
    MESSAGES,
    OPERATION,
    ROUTE,
    STATE,
    body_outputs,
    bytes_of,
    propagated,
)
from penstock.core.messages import NO_DEADLINE, Parameter
from penstock.core.servable import Signature, Tensors
from penstock.core.tensor import Array
from penstock.core.trace import RequestTrace, leading
from penstock.graphs.definition import (
    Graph,
)
from penstock.runtime.graphs import learned
from penstock.runtime.graphs.bandits import Bandits
from penstock.runtime.graphs.calling import Calls
from penstock.runtime.graphs.contract import read_feedback
from penstock.runtime.graphs.journey import Journey
from penstock.runtime.graphs.learned import Keeper
from penstock.runtime.graphs.remote import Remote
from penstock.runtime.graphs.tensors import TensorRunner
from penstock.runtime.workers import Batch, BatchResult, Done

log = logging.getLogger("penstock.graph")


_MARGIN_S = 0.03


class Runner(Protocol):
    """Runs one level of graphs."""

    async def answer(self, journey: Journey, inputs: Tensors) -> Mapping[str, Array]: ...


class GraphExecutor:
    """Runs one graph's requests, `signature.concurrency` of them at once."""

    def __init__(self, graph: Graph, signature: Signature, calls: Calls, state: Path | None = None) -> None:
        """Takes `calls` over, and closes what it opened. `state` is the file of what its routers learn.

        Raises:
            LoadError: there is such a file, and it cannot be read.
        """
        self.signature = signature
        self.graph = graph
        self.bandits = Bandits(graph)
        self._keeper: Keeper | None = None
        if state is not None:
            learned.read(state, self.bandits.ways)
            self._keeper = Keeper(state, self.bandits.state)
            self.bandits.on_learned = self._keeper.note
        self.batches = 0
        self._calls = calls
        self._remote: Remote = calls.remote
        self._runner = _runner(graph, calls, self.bandits)
        self._tasks: dict[int, asyncio.Task[BatchResult]] = {}
        self._serial = 0
        self._closed = False

    @property
    def free_slots(self) -> int:
        return 0 if self._closed else self.signature.concurrency - len(self._tasks)

    @property
    def answers(self) -> bool:
        """Whether every model that it asks here computes now."""
        return not self._closed and self._calls.ready(self.graph)

    def run(self, batch: Batch, done: Done) -> int:
        """See `Executor.run`. A batch is one request: what joins requests is the queues of the models behind."""
        self._serial += 1
        number = self._serial
        task = self._tasks[number] = asyncio.get_running_loop().create_task(self._answer(batch))
        task.add_done_callback(partial(self._ended, number, done))
        self.batches += 1
        return number

    def abandon(self, number: int) -> None:
        """Cancels what was asked for this request."""
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    def stream(
        self,
        inputs: Tensors,
        parameters: Mapping[str, Parameter],
        deadline: float = NO_DEADLINE,
        traces: tuple[RequestTrace, ...] = (),
    ) -> AsyncIterator[Tensors]:
        """Never called: no graph's signature is a streaming one."""
        raise Unsupported("a graph answers once; it does not stream")

    async def close(self, grace_s: float) -> None:
        """See `Executor.close`."""
        self._closed = True
        if self._tasks and grace_s > 0:
            await asyncio.wait(list(self._tasks.values()), timeout=grace_s)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._remote.close()
        if self._keeper is not None:
            await self._keeper.settled()

    async def _answer(self, batch: Batch) -> BatchResult:
        began = time.monotonic()
        # Late steps are noticed up to 20 ms late; with this much less time they still tell who was late, before the
        # queue in front of the graph says only that somebody was.
        deadline = batch.deadline - min(_MARGIN_S, 0.1 * max(0.0, batch.deadline - began))
        if self.graph.timeout_s is not None:
            deadline = min(deadline, began + self.graph.timeout_s)
        parameters = dict(batch.parameters or {})
        operation = parameters.pop(OPERATION, "")
        inputs = batch.parts[0]
        if operation and self.graph.level != MESSAGES:
            return self._learn(str(operation), inputs, began)
        if operation:
            parameters[OPERATION] = operation
        journey = Journey(deadline, parameters, leading(batch.traces) if batch.traces else None, self._headers(inputs))
        outputs = await self._runner.answer(journey, inputs)
        finished = time.monotonic()
        given: dict[str, Parameter] = {}
        if journey.routes:
            given[ROUTE] = ",".join(f"{name}={index}" for name, index in journey.routes.items())
        return BatchResult(dict(outputs), 0.0, finished - began, 0.0, given, tuple(journey.times))

    def _headers(self, inputs: Tensors) -> Mapping[str, str]:
        """What goes on of the caller's headers."""
        given = inputs.get("headers")
        if given is None or given.dtype.kind != "O":
            return {}
        try:
            headers = msgspec.json.decode(bytes_of(given), type=dict[str, str])
        except (msgspec.MsgspecError, TypeError, RecursionError):
            raise InvalidInput("the input 'headers' is no JSON object of texts") from None
        return propagated(headers, self.signature)

    def _learn(self, operation: str, inputs: Tensors, began: float) -> BatchResult:
        """Feedback, or what was learned so far, as a JSON body."""
        if operation == FEEDBACK:
            told = sum(self.bandits.learn(routes, reward) for routes, reward in read_feedback(inputs.get("body")))
            document: object = {"learned": told}
        elif operation == STATE:
            document = {"routers": self.bandits.state()}
        else:
            raise InvalidInput(f"{OPERATION} is {operation!r}; one of {FEEDBACK}, {STATE}")
        outputs = body_outputs(200, msgspec.json.encode(document))
        return BatchResult(outputs, 0.0, time.monotonic() - began, 0.0)

    def _ended(self, number: int, done: Done, task: asyncio.Task[BatchResult]) -> None:
        del self._tasks[number]
        if task.cancelled():
            done(Cancelled("the graph's request was cancelled"))
            return
        error = task.exception()
        if error is None:
            done(task.result())
        elif isinstance(error, PenstockError):
            done(error)
        else:
            log.error("graph_failed", exc_info=error, extra={"model": self.graph.name})
            done(Internal("internal error; the server's log has the traceback"))


def _runner(graph: Graph, calls: Calls, bandits: Bandits) -> Runner:
    if graph.level == BODIES:
        from penstock.runtime.graphs.bodies import BodyRunner

        return BodyRunner(graph, calls, bandits)
    if graph.level == MESSAGES:
        from penstock.runtime.graphs.seldon import MessageRunner

        return MessageRunner(graph, calls, bandits)
    return TensorRunner(graph, calls, bandits)
