"""Copies of inline versions in an extra front: their batches run here, without a hop to the engine's process.

The engine's table says which versions may be copied. A copy is loaded in a thread from the same files (checked by their
hash) and takes requests once it is there; until then, and whenever it does not work out, requests go to the engine. A
version that leaves the table takes no new requests from that moment on, answers what it holds, and is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import cast

from penstock import plugins
from penstock.core.errors import NotReady, PenstockError
from penstock.core.servable import Adapter, Signature
from penstock.runtime.artifact import Snapshot, artifact_sha256
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.checking import RequestCheck
from penstock.runtime.disk import from_disk
from penstock.runtime.fronts import wire
from penstock.runtime.loading import ADAPTERS, slow_inline
from penstock.runtime.version import InlineCopy
from penstock.runtime.workers.inline import InlineExecutor
from penstock.telemetry.metrics import ForwardingMetrics

log = logging.getLogger("penstock.fronts")

_DRAIN_S = 0.02  # inline batches take microseconds, so what a leaving copy holds is soon answered


class Copy:
    """One version held here; `runtime.inference.Answering`."""

    def __init__(
        self, name: str, version: str, wished: InlineCopy, inline: InlineExecutor, metrics: ForwardingMetrics
    ) -> None:
        self.name = name
        self.version = version
        self.timeout_s = wished.timeout_s
        self.signature: Signature = inline.signature
        self.inline = inline
        self.metrics = metrics
        self.check = RequestCheck(inline.signature)
        self.batcher = Batcher(
            name, version, wished.limits, joinable=wished.joinable, max_queue=wished.max_queue, recorder=metrics,
            shed=wished.shed,
        )  # fmt: skip
        self.batcher.set_executors([inline])


class Copies:
    """All copies of one front. `send` takes messages for the engine."""

    def __init__(self, send: Callable[[wire.Observed], None]) -> None:
        self._send = send
        self._copies: dict[int, Copy | None] = {}  # by serial; None: not to be held here
        self._tasks: dict[int, asyncio.Task[None]] = {}  # loads, by serial
        self._closing: set[asyncio.Task[None]] = set()
        self._wished: set[int] = set()

    def get(self, serial: int) -> Copy | None:
        """The copy of one load, when it is there."""
        return self._copies.get(serial)

    def follow(self, table: wire.Table) -> None:
        """Loads what the table allows to be copied, and lets go of the rest."""
        wished: dict[int, tuple[str, str, InlineCopy]] = {}
        for description, copy in zip(table.descriptions, table.copies, strict=True):
            if copy is not None:
                wished[copy.serial] = (description.name, str(description.version), copy)
        self._wished = set(wished)
        for serial in [serial for serial in self._copies if serial not in wished]:
            if (left := self._copies.pop(serial)) is not None:
                self._let_go(left)
        for serial, (name, version, copy) in wished.items():
            if serial not in self._copies and serial not in self._tasks:
                self._begin(serial, self._load(name, version, copy))

    def busy(self) -> list[tuple[str, str, int, int]]:
        """(model, version, requests in flight, queued) of each copy."""
        return [
            (copy.name, copy.version, copy.batcher.in_flight, copy.batcher.queued)
            for copy in self._copies.values()
            if copy is not None
        ]

    def flush(self) -> None:
        """Sends what was recorded."""
        for copy in self._copies.values():
            if copy is not None:
                copy.metrics.fold()

    def give_up_slow(self) -> None:
        """Gives up copies that turned out slow, so that the engine decides for all."""
        for serial, copy in list(self._copies.items()):
            if copy is not None and slow_inline(copy.inline):
                log.info("copy_given_up", extra={"model": copy.name, "batch_s": round(copy.inline.compute_s, 6)})
                self._copies[serial] = None
                self._let_go(copy)

    async def close(self) -> None:
        """Returns when every copy is closed and has sent what it recorded."""
        for task in (*self._tasks.values(), *self._closing):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._closing, return_exceptions=True)
        for copy in [copy for copy in self._copies.values() if copy is not None]:
            await self._close(copy)
        self._copies.clear()

    async def _load(self, name: str, version: str, wished: InlineCopy) -> None:
        path = Path(wished.path)
        try:
            adapter = cast(Adapter, plugins.load(ADAPTERS, wished.adapter))
            snapshot = await from_disk(Snapshot, path)
            if await from_disk(artifact_sha256, path) != wished.sha256:
                raise NotReady("its files are not those that the engine loaded")
            inline = await InlineExecutor.load(adapter, path, wished.context)
            if await from_disk(snapshot.changed):
                await inline.close(0.0)
                raise NotReady("its files changed while they were loaded")
        except Exception as error:  # an adapter's own; requests go to the engine, which shows what they meet
            fields = {"model": name, "version": version, "error": str(error) or type(error).__name__}
            log.warning("copy_failed", extra=fields, exc_info=not isinstance(error, (PenstockError, OSError)))
            self._copies[wished.serial] = None
            return

        if wished.serial not in self._wished:  # it was withdrawn while it was loaded
            await inline.close(0.0)
            return

        def forward(requests: bytes, batches: bytes, failures: list[tuple[str, float]]) -> None:
            self._send(wire.Observed(name, version, requests, batches, failures))

        self._copies[wished.serial] = Copy(name, version, wished, inline, ForwardingMetrics(name, version, forward))

    async def _close(self, copy: Copy) -> None:
        try:
            for _ in range(int(copy.timeout_s / _DRAIN_S)):
                if not copy.batcher.in_flight:
                    break
                await asyncio.sleep(_DRAIN_S)
        finally:  # also when the front ends meanwhile: what was recorded is not to be lost
            copy.batcher.close(NotReady(f"model '{copy.name}' version {copy.version} is unloaded"))
            copy.metrics.fold()
            await copy.inline.close(0.0)

    def _begin(self, serial: int, load: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(load)
        self._tasks[serial] = task
        task.add_done_callback(lambda _: self._tasks.pop(serial, None))

    def _let_go(self, copy: Copy) -> None:
        """Closes a copy when it holds nothing more. One of the same serial may be loaded, and let go, meanwhile."""
        task = asyncio.get_running_loop().create_task(self._close(copy))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
