"""The answers of a streaming model: its request waits in the queue like all others, and is a batch of its own.

The deadline covers the reader too. It ends the stream on time while the reader takes no items, and so asks for none:
a worker must not be held, and in the end killed as stuck, by somebody who does not read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable

from penstock.core.errors import Cancelled, DeadlineExceeded, PenstockError, WorkerLost
from penstock.core.messages import NO_DEADLINE, Request, Response
from penstock.core.servable import Tensors
from penstock.runtime.batching.batcher import MOST_RETURNS, Batcher
from penstock.runtime.workers.stream import Stream

_LATE = "the deadline passed in the middle of the stream"


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
    timer = _watched(batcher, request, items)
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
                if timer is not None:
                    timer.cancel()
                timer = _watched(batcher, request, items)
                continue
            if outputs is None:
                break
            count = items.count if isinstance(items, Stream) else 0
            yield Response(batcher.model, batcher.version, dict(outputs), request.id, {}, timings, count=count)
    except PenstockError as error:
        failed = error.reason
        if isinstance(error, WorkerLost) and not error.begun:
            batcher.note_death(request.inputs, error)
        raise
    except (GeneratorExit, asyncio.CancelledError):
        failed = Cancelled.reason
        raise
    finally:
        if timer is not None:
            timer.cancel()
        await items.aclose()  # type: ignore[attr-defined]  # executors' streams have it
        timings.finished = time.monotonic()
        timings.compute_infer_s = timings.finished - timings.dispatched
        if failed is None:
            batcher.note_answer(request.inputs)
            batcher.note_stream(timings.compute_infer_s)
            batcher.recorder.record(timings, rows)
        else:
            batcher.recorder.record_failure(failed, timings.finished - timings.received)
        batcher.release()


def _watched(batcher: Batcher, request: Request, items: AsyncIterator[Tensors]) -> asyncio.TimerHandle | None:
    """Sees to it that a worker's stream ends at its deadline, and is blamed for the worker's death, whatever the reader
    does meanwhile, and that its pieces take the short way. Gives back what ends it."""
    if not isinstance(items, Stream):
        return None

    def lost(error: WorkerLost) -> None:
        if error.begun:
            batcher.note_death(request.inputs, error)

    items.on_lost(lost)
    if request.push is not None:
        items.push_to(request.push)
    if request.deadline == NO_DEADLINE:
        return None
    left_s = request.deadline - time.monotonic()
    return asyncio.get_running_loop().call_later(left_s, items.expire, DeadlineExceeded(_LATE))


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
    if time.monotonic() >= deadline:
        raise DeadlineExceeded(_LATE)
    item = await anext(items, None)
    if time.monotonic() >= deadline:
        raise DeadlineExceeded(_LATE)
    return item
