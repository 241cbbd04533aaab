"""The answers of a streaming model: its request waits in the queue like all others, and is a batch of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable

from penstock.core.errors import Cancelled, DeadlineExceeded, PenstockError, WorkerLost
from penstock.core.messages import NO_DEADLINE, Request, Response
from penstock.core.servable import Tensors
from penstock.runtime.batching.batcher import MOST_RETURNS, Batcher


async def stream(batcher: Batcher, request: Request, key: Hashable, rows: int) -> AsyncIterator[Response]:
    """The answers, as they come. Closing it stops the model within one item.

    Raises: what `Batcher.submit` raises, DeadlineExceeded as soon as the deadline passes, and the model's own errors.
    """
    future = batcher.submit(request, key, rows, stream=True)
    try:
        items = await _given(future)
    except BaseException:
        if future.done() and not future.cancelled() and future.exception() is None:
            batcher.release()  # given to us as we were cancelled
        raise
    timings = request.timings
    failed: str | None = None
    returns = 0
    try:
        while True:
            try:
                outputs = await _next_before(request.deadline, items)
            except WorkerLost as error:
                if error.begun or returns == MOST_RETURNS:
                    raise
                returns += 1
                items = await _given(batcher.resubmit(request, rows))
                continue
            if outputs is None:
                break
            yield Response(batcher.model, batcher.version, dict(outputs), request.id, {}, timings)
    except PenstockError as error:
        failed = error.reason
        if isinstance(error, WorkerLost):
            batcher.note_death(request.inputs, alone=not error.in_company)
        raise
    except (GeneratorExit, asyncio.CancelledError):
        failed = Cancelled.reason
        raise
    finally:
        await items.aclose()  # type: ignore[attr-defined]  # executors' streams have it
        timings.finished = time.monotonic()
        timings.compute_infer_s = timings.finished - timings.dispatched
        if failed is None:
            batcher.note_answer(request.inputs)
            batcher.recorder.record(timings, rows)
        else:
            batcher.recorder.record_failure(failed, timings.finished - timings.received)
        batcher.release()


async def _given(future: asyncio.Future[Response]) -> AsyncIterator[Tensors]:
    """What a worker was asked for. Closes it when the reader leaves at the moment at which it comes."""
    try:
        return await future  # type: ignore[return-value]  # a stream's future brings its iterator
    except BaseException:
        if future.done() and not future.cancelled() and future.exception() is None:
            await future.result().aclose()  # type: ignore[attr-defined]  # executors' streams have it
        raise


async def _next_before(deadline: float, items: AsyncIterator[Tensors]) -> Tensors | None:
    """The next item; None at the end. Raises: DeadlineExceeded, as soon as the deadline passes."""
    left_s = deadline - time.monotonic()
    try:
        if left_s <= 0:
            raise TimeoutError
        async with asyncio.timeout(left_s if left_s < NO_DEADLINE else None):
            return await anext(items, None)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed in the middle of the stream") from None
