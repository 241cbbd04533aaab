"""One loaded model version: its executors, its queue, what it tells about itself, and its end. Made by `loading`."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from penstock.core.door import ModelDescription, Statistics
from penstock.core.errors import NotReady
from penstock.core.servable import LoadContext, Signature
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.checking import RequestCheck
from penstock.runtime.graphs.contract import GraphCheck
from penstock.runtime.graphs.executor import GraphExecutor
from penstock.runtime.language.defaults import LANGUAGE, for_language
from penstock.runtime.sources import WishedModel, WishedVersion
from penstock.runtime.warm_up import Findings
from penstock.runtime.workers.inline import InlineExecutor
from penstock.runtime.workers.pool import Pool
from penstock.telemetry.language import LanguageSums
from penstock.telemetry.metrics import ModelMetrics, Probes

log = logging.getLogger("penstock.version")


@dataclass(frozen=True, slots=True)
class InlineCopy:
    """What another front needs to hold an inline version itself. `serial` is of one load and never used again."""

    serial: int
    adapter: str
    path: str
    sha256: str
    context: LoadContext
    limits: BatchLimits
    joinable: bool
    max_queue: int
    shed: bool
    timeout_s: float


class LoadedVersion:
    """One version. It has a pool of worker processes, an inline executor, or is a graph; closed once."""

    batcher: Batcher
    check: RequestCheck | GraphCheck
    signature: Signature

    def __init__(self, wished: WishedModel, version: WishedVersion, metrics: ModelMetrics) -> None:
        self.name = wished.options.name
        self.number = version.number
        self.options = for_language(wished.options) if wished.adapter == LANGUAGE else wished.options
        self.adapter = wished.adapter
        self.path = version.path
        self.metrics = metrics
        if self.adapter == LANGUAGE:
            metrics.language = LanguageSums()
        self.sha256 = ""
        self.serial = 0  # of this load
        self.findings = Findings(answered=False)
        self.inline: InlineExecutor | None = None
        self.pool: Pool | None = None
        self.graph: GraphExecutor | None = None
        self.copy: InlineCopy | None = None  # while it runs inline
        self.elsewhere: dict[object, tuple[int, int]] = {}  # by front with a copy: requests in flight, queued
        self.watch: asyncio.Task[None] | None = None  # looks whether the model still belongs inline
        self.closing = False
        self.size_bytes = 0  # memory that it takes while it is not resting, as measured; 0 when that was not asked for
        self.resting = False  # it gave its memory back; `revive` loads it again
        self.not_woken = ""  # while it rests: why its last load failed
        self.moving = False  # from inline to worker processes
        self.revive: Callable[[], Awaitable[None]] | None = None  # None: it never rests
        self._rested_from = ""
        self.loaded_s = 0.0  # how long loading and warming took

    @property
    def executor(self) -> str:
        """Where batches run now: "inline", "process", or "graph": in the models that it asks."""
        if self.graph is not None:
            return "graph"
        if self.resting:
            return self._rested_from
        return "inline" if self.inline is not None else "process"

    @property
    def answers(self) -> bool:
        """Whether it computes now, or will for the next request. Without a worker it holds requests, inside their
        deadlines, until it has one."""
        if self.graph is not None:
            return self.graph.answers
        return self.resting or self.inline is not None or (self.pool is not None and self.pool.answers)

    @property
    def timeout_s(self) -> float:
        """The deadline of requests that bring none."""
        return self.options.timeout_s

    def describe(self, versions: tuple[int, ...], labels: dict[str, int]) -> ModelDescription:
        """This version as metadata shows it."""
        config: dict[str, object] = dataclasses.asdict(self.options)
        config["name"], config["path"], config["adapter"] = self.name, str(self.path), self.adapter
        joins = self.batcher.joinable or (self.graph is not None and self.signature.batchable)
        config["max_batch_size"] = self.options.max_batch_size if joins else 0
        return ModelDescription(
            self.name, self.number, versions, labels, self.signature, config, self.executor, str(self.path),
            self.sha256, self.serial,
        )  # fmt: skip

    def statistics(self) -> Statistics:
        """What it has done since it was loaded."""
        return self.metrics.statistics()

    def use_current_executors(self) -> None:
        """Hands the batcher the executors there are now, and the metrics what can be asked of them."""
        own = self.inline or self.graph
        self.batcher.set_executors([own] if own is not None else self.pool.workers if self.pool else [])
        if self.closing:
            return  # the figures are its successor's by now
        self.metrics.probes = Probes(
            in_flight=lambda: self.batcher.in_flight + sum(figures[0] for figures in self.elsewhere.values()),
            queued=lambda: self.batcher.queued + sum(figures[1] for figures in self.elsewhere.values()),
            workers=self._workers,
            executor=self.executor,
        )

    def _workers(self) -> list[dict[str, object]]:
        """One row per worker; inline, the front itself is the one."""
        if self.resting:
            return []
        return self.pool.status() if self.pool is not None else [{"index": 0, "state": "ready", "pid": os.getpid()}]

    def rest(self) -> Coroutine[None, None, None]:
        """Takes requests no further than into the queue, from now on; awaited, gives the memory back. It must hold no
        request, and not be moving."""
        self._rested_from, self.resting = self.executor, True
        pool, inline, watch = self.pool, self.inline, self.watch
        if pool is not None:  # it comes back with as many workers as it began with
            self.size_bytes = self.size_bytes * pool.least // pool.size
        self.pool, self.inline, self.watch, self.copy = None, None, None, None
        self.use_current_executors()

        async def free() -> None:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
            if pool is not None:
                await pool.close(0.0)
            if inline is not None:
                await inline.close(0.0, trim=False)

        return free()

    async def close(self, grace_s: float) -> None:
        """Answers what it holds (within `grace_s`), then frees everything, also when it is cancelled."""
        self.closing = True
        close_by = time.monotonic() + grace_s
        try:
            if self.batcher.busy:
                idle = asyncio.Event()
                self.batcher.on_idle = idle.set
                try:
                    async with asyncio.timeout(grace_s):
                        await idle.wait()
                except TimeoutError:
                    log.warning("unload_cut_short", extra={"model": self.name, "in_flight": self.batcher.in_flight})
        finally:
            self.batcher.close(NotReady(f"model '{self.name}' version {self.number} is unloaded"))
            await self.free(0.0 if self.batcher.in_flight else max(0.0, close_by - time.monotonic()))

    async def free(self, grace_s: float) -> None:
        """Ends every executor; also of a version that never became ready."""
        if self.watch is not None:
            self.watch.cancel()
            await asyncio.gather(self.watch, return_exceptions=True)
        executors = (self.pool, self.inline, self.graph)
        closing: list[Any] = [executor.close(grace_s) for executor in executors if executor is not None]
        await asyncio.gather(*closing)
