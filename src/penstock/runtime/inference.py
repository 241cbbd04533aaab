"""How a request is answered by a version that is in this process: checked, split where it is too large, queued, traced.

The engine and an extra front's copies of inline models both answer this way.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Protocol

import numpy as np

from penstock.core.errors import Cancelled, InvalidInput, PenstockError
from penstock.core.messages import NO_DEADLINE, Request, Response, Timings
from penstock.core.servable import Signature
from penstock.runtime.batching import streams
from penstock.runtime.batching.batcher import Batcher

# Of one request with more rows than a batch: enough to keep any pool of workers busy, few enough to leave room in the
# queue for other callers.
_PIECES_AT_ONCE = 16


class Answering(Protocol):
    """A version that answers here. `timeout_s` is the deadline of requests that bring none."""

    signature: Signature
    batcher: Batcher

    @property
    def check(self) -> Callable[[Request], tuple[Hashable, int]]: ...

    @property
    def timeout_s(self) -> float: ...


Trace = Callable[[Request, Response], None]


class Inference:
    """Answers requests on versions that it is given. `trace` is called with each answer while it is set."""

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self._loop = asyncio.get_running_loop()

    def submit(self, version: Answering, request: Request) -> asyncio.Future[Response]:
        """A future of the one answer; see `core.door.Door.submit`."""
        batcher = version.batcher
        key, rows = version.check(request)
        if request.deadline == NO_DEADLINE:
            request.deadline = (request.timings.received or time.monotonic()) + version.timeout_s
        if rows > batcher.limits.most_rows and batcher.joinable:
            return self._loop.create_task(self._in_pieces(version, request, rows))
        future = batcher.submit(request, key, rows)
        if request.outputs or self.trace is not None:
            task = self._loop.create_task(self._finish(future, request))
            task.add_done_callback(lambda _: future.cancel())  # also of a task that was cancelled before it began
            return task
        return future

    async def stream(self, version: Answering, request: Request) -> AsyncIterator[Response]:
        """The answers of a stream; see `core.door.Door.stream`."""
        if not version.signature.streaming:
            yield await self.submit(version, request)
            return
        key, rows = version.check(request)
        if request.deadline == NO_DEADLINE:
            request.deadline = (request.timings.received or time.monotonic()) + version.timeout_s
        answers = streams.stream(version.batcher, request, key, rows)
        try:
            async for response in answers:
                yield _asked_for(response, request)
        finally:
            await answers.aclose()  # type: ignore[attr-defined]  # a batcher's stream is an async generator

    async def _finish(self, future: asyncio.Future[Response], request: Request) -> Response:
        response = _asked_for(await future, request)
        if self.trace is not None:
            self.trace(request, response)
        return response

    async def _in_pieces(self, version: Answering, request: Request, rows: int) -> Response:
        """More rows than one batch may hold: several batches, one answer, all under the request's own deadline."""
        most = version.batcher.limits.most_rows
        waiting: deque[asyncio.Future[Response]] = deque()
        answers: list[Response] = []
        batcher = version.batcher
        batcher.retain(request)
        try:
            for start in range(0, rows, most):
                if len(waiting) == _PIECES_AT_ONCE:
                    answers.append(await waiting.popleft())
                waiting.append(self._submit_piece(version, request, start, start + most))
            while waiting:
                answers.append(await waiting.popleft())
        except (PenstockError, asyncio.CancelledError) as error:
            reason = error.reason if isinstance(error, PenstockError) else Cancelled.reason
            batcher.recorder.record_failure(reason, time.monotonic() - request.timings.received)
            raise
        finally:
            for future in waiting:
                future.cancel()
            batcher.release()
        whole = answers[-1]
        whole.outputs = {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in whole.outputs}
        whole.timings = request.timings = _timings_of(answers)
        batcher.recorder.record(whole.timings, rows)
        return _asked_for(whole, request)

    def _submit_piece(self, version: Answering, request: Request, start: int, end: int) -> asyncio.Future[Response]:
        piece = Request(
            request.model,
            {name: array[start:end] for name, array in request.inputs.items()},
            request.version,
            request.id,
            request.parameters,
            (),
            request.deadline,
            request.priority,
        )
        piece.timings.received = request.timings.received
        piece.trace = request.trace
        key, rows = version.check(piece)
        return version.batcher.submit(piece, key, rows, piece=True)


def _timings_of(answers: list[Response]) -> Timings:
    """The timings of a request that was answered in pieces: from the first to the last, compute added up."""
    first, last = answers[0].timings, answers[-1].timings
    return Timings(
        first.received,
        first.submitted,
        first.dispatched,
        last.finished,
        sum(answer.timings.compute_input_s for answer in answers),
        sum(answer.timings.compute_infer_s for answer in answers),
        sum(answer.timings.compute_output_s for answer in answers),
        last.batch_rows,
        last.release,
    )


def _asked_for(response: Response, request: Request) -> Response:
    if request.outputs:
        try:
            response.outputs = {name: response.outputs[name] for name in request.outputs}
        except KeyError as error:
            raise InvalidInput(f"no output {error}; the model gave {', '.join(map(repr, response.outputs))}") from None
    return response
