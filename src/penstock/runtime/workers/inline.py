"""A servable in the front's own process: its batches run in the front's loop, between two reads of sockets.

Only for library models whose batches take less than crossing to another process would. User code never runs here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path

import numpy as np

from penstock.core.errors import Internal, PenstockError, WorkerLost
from penstock.core.messages import NO_DEADLINE, Parameter
from penstock.core.servable import Adapter, LoadContext, Servable, Signature, StreamingServable, Tensors
from penstock.core.tensor import Array
from penstock.core.trace import RequestTrace
from penstock.runtime.workers import Batch, BatchResult, Done, answers
from penstock.runtime.workers.heap import give_back
from penstock.runtime.workers.relay import Allowance

log = logging.getLogger("penstock.worker")

# Batches whose median time is kept. A median, because a machine that is busy with something else for a moment makes a
# few batches a thousand times as long, and they say nothing about the model.
_WINDOW = 32


class InlineExecutor:
    """Runs batches at once, one at a time."""

    signature: Signature

    def __init__(self, servable: Servable, context: LoadContext) -> None:
        """Takes the servable over, and closes it in `close`."""
        self.signature = servable.signature
        self.device = context.device
        self.batches = 0
        self.compute_s = 0.0  # median of one batch's time in the loop, of the last full window
        self._times: list[float] = []
        self.exited = False
        self._streams: set[Iterator[Tensors]] = set()  # of the streams under way, suspended between two items
        self._servable = servable
        self._fields = {"model": context.name, "version": context.version}
        self._errors_logged = Allowance(per_s=5.0, burst=20.0)

    @classmethod
    async def load(cls, adapter: Adapter, path: Path, context: LoadContext) -> InlineExecutor:
        """The executor of a freshly loaded servable; loading happens in a thread. Raises: LoadError."""
        return cls(await asyncio.to_thread(adapter.load, path, context), context)

    @property
    def free_slots(self) -> int:
        return 0 if self.exited else 1

    def run_now(self, batch: Batch) -> BatchResult | PenstockError:
        """The result or the error of a batch, computed before this returns. A batch of one part is passed as it is,
        and its outputs are the servable's own (see `Servable`, 6)."""
        if self.exited:
            return WorkerLost("the model was closed")
        began = time.perf_counter()
        try:
            inputs = batch.parts[0] if len(batch.parts) == 1 and not batch.pad_rows else _join(batch)
            entered = time.perf_counter()
            returned = self._servable.predict(inputs, batch.parameters or {})
            left = time.perf_counter()
            rows = batch.rows + batch.pad_rows if batch.joined else -1
            outputs = answers.checked(returned, self.signature, rows)
        except Exception as error:
            return self._blame(error)
        done = time.perf_counter()
        self.batches += 1
        times = self._times
        times.append(done - began)
        if len(times) == _WINDOW:
            self.compute_s = sorted(times)[_WINDOW // 2]
            times.clear()
        return BatchResult(outputs, entered - began, left - entered, done - left)

    def forget_times(self) -> None:
        """Starts the measurement anew: the batches of a warm-up are colder than real ones."""
        self.batches, self.compute_s = 0, 0.0
        self._times.clear()

    def run(self, batch: Batch, done: Done) -> int:
        """As every executor's: the batch runs before this returns, `done` is called later."""
        asyncio.get_running_loop().call_soon(done, self.run_now(batch))
        return 0

    def abandon(self, number: int) -> None:
        """Nothing: by the time somebody can ask, the batch is done."""

    async def stream(
        self,
        inputs: Tensors,
        parameters: Mapping[str, Parameter],
        deadline: float = NO_DEADLINE,
        traces: tuple[RequestTrace, ...] = (),
    ) -> AsyncGenerator[Tensors]:
        """The answers to one request, one for each turn of the loop. The deadline is the reader's to watch: between two
        items nothing computes. No user code runs here that could ask for traces."""
        if self.exited:
            raise WorkerLost("the model was closed")
        try:
            if not isinstance(self._servable, StreamingServable):
                yield answers.checked(self._servable.predict(inputs, parameters), self.signature, -1)
                return
            items = self._servable.answer(inputs, parameters)
            if hasattr(items, "__aiter__"):
                raise Internal("an asyncio model cannot run inline")
            items = iter(items)
            try:
                self._streams.add(items)
                for item in items:
                    yield answers.checked(item, self.signature, -1)
                    await asyncio.sleep(0)
            finally:
                self._streams.discard(items)
                _end(items)
        except Exception as error:
            raise self._blame(error) from None
        if self.exited:  # `close` has ended the model's iterator, not the model
            raise WorkerLost("the model was closed")

    async def close(self, grace_s: float, *, trim: bool = True) -> None:
        """Ends the streams that are between two items (their readers get WorkerLost), then closes the servable in a
        thread. Batches cannot be running when this is called. Without `trim` the C library keeps what was freed, for
        whoever loads next."""
        if not self.exited:
            self.exited = True
            for items in list(self._streams):
                try:
                    _end(items)
                except Exception as error:  # the model's own cleaning up
                    self._blame(error)
            await asyncio.to_thread(self._free, trim)

    def _free(self, trim: bool) -> None:
        self._servable.close()
        del self._servable  # this executor may be known for longer, by its figures
        if trim:
            give_back()

    def _blame(self, error: Exception) -> PenstockError:
        if not isinstance(error, PenstockError) and self._errors_logged.take():
            log.error("model_error", extra={**self._fields, "trace": answers.trace(error)})
        return answers.blame(error)


def _end(items: Iterator[Tensors]) -> None:
    """Has a generator leave at the item where it is; other iterators have nothing to leave."""
    close = getattr(items, "close", None)
    if close is not None:
        close()


def _join(batch: Batch) -> dict[str, Array]:
    # A fresh array each time: filling a kept one was no faster at 64 floats nor at 600 KB a part.
    joined = {}
    for name in batch.parts[0]:
        arrays = [part[name] for part in batch.parts]
        if batch.pad_rows:
            arrays.append(np.repeat(arrays[-1][-1:], batch.pad_rows, axis=0))
        joined[name] = np.concatenate(arrays)
    return joined
