"""One loaded model version: its executors, its queue, and how it came to be ready."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from penstock import plugins
from penstock.core.declare import Batch as DeclaredBatch
from penstock.core.door import ModelDescription, Statistics
from penstock.core.errors import InvalidInput, LoadError, NotReady, PenstockError
from penstock.core.resources import Device, deal, parse_device, workers_that_fit
from penstock.core.servable import Adapter, LoadContext, Signature
from penstock.core.tensor import parse_spec
from penstock.runtime import warm_up
from penstock.runtime.artifact import artifact_sha256
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.checking import RequestCheck
from penstock.runtime.options import ModelOptions
from penstock.runtime.sources import WishedModel, WishedVersion
from penstock.runtime.warm_up import Findings
from penstock.runtime.workers import Batch, BatchResult
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.inline import InlineExecutor
from penstock.runtime.workers.pool import Pool
from penstock.runtime.workers.process import WorkerProcess
from penstock.runtime.workers.threads import thread_plan
from penstock.telemetry.metrics import Metrics, ModelMetrics, Probes

log = logging.getLogger("penstock.version")

ADAPTERS = "penstock.runtime.adapters"

# Adapters whose authors say themselves what axis 0 is, and whose memory and state only they know.
OWN_WORD = ("python", "echo")

# A batch in the front's loop delays every other request by its length, so only short ones may run there: the figure is
# from design.md, where a hop to a worker and back costs about as much.
INLINE_BATCH_S = 150e-6
# Models above this size stay in processes of their own, so that ending one gives all its memory back.
INLINE_SIZE_BYTES = 64 << 20


class LoadedVersion:
    """One version that answers. Made by `load`; closed once."""

    def __init__(self, wished: WishedModel, version: WishedVersion, metrics: ModelMetrics) -> None:
        self.name = wished.options.name
        self.number = version.number
        self.options = wished.options
        self.adapter = wished.adapter
        self.path = version.path
        self.metrics = metrics
        self.sha256 = ""
        self.batcher: Batcher
        self.check: RequestCheck
        self.signature: Signature
        self.findings = Findings(answered=False)
        self.inline: InlineExecutor | None = None
        self.pool: Pool | None = None
        self.loaded_s = 0.0  # how long loading and warming took
        self.size_bytes = 0

    @property
    def executor(self) -> str:
        """Where batches run now: "inline" or "process"."""
        return "inline" if self.inline is not None else "process"

    def describe(self, versions: tuple[int, ...], labels: dict[str, int]) -> ModelDescription:
        """This version as metadata shows it."""
        config: dict[str, object] = dataclasses.asdict(self.options)
        config["name"], config["path"], config["adapter"] = self.name, str(self.path), self.adapter
        config["max_batch_size"] = self.options.max_batch_size if self.batcher.joinable else 0
        return ModelDescription(
            self.name, self.number, versions, labels, self.signature, config, self.executor, str(self.path), self.sha256
        )

    def statistics(self) -> Statistics:
        """What it has done since it was loaded."""
        figures = self.metrics.statistics()
        figures.executor = self.executor
        return figures

    def workers(self) -> list[dict[str, object]]:
        """One row per worker; inline, the front itself is the one."""
        return self.pool.status() if self.pool is not None else [{"index": 0, "state": "ready", "pid": os.getpid()}]

    async def close(self, grace_s: float) -> None:
        """Answers what it holds (within `grace_s`), then frees everything."""
        if self.batcher.in_flight:
            idle = asyncio.Event()
            self.batcher.on_idle = idle.set
            try:
                await asyncio.wait_for(idle.wait(), grace_s)
            except TimeoutError:
                log.warning("unload_cut_short", extra={"model": self.name, "in_flight": self.batcher.in_flight})
        self.batcher.close(NotReady(f"model '{self.name}' version {self.number} is unloaded"))
        if self.pool is not None:
            await self.pool.close(0.0 if self.batcher.in_flight else grace_s)
        if self.inline is not None:
            await self.inline.close(0.0)


async def load(
    wished: WishedModel, version: WishedVersion, metrics: Metrics, cores: int, on_change: Callable[[], None]
) -> LoadedVersion:
    """A version that has answered a real warm-up through its real path.

    Every load happens first in a worker process, so that a file which crashes its framework ends a worker, not the
    server. Small, fast, library-only models are then loaded a second time into the front, and the worker ends.

    Raises:
        LoadError: it could not be loaded, warmed or checked; nothing of it is left behind.
    """
    loaded = LoadedVersion(wished, version, metrics.model(wished.options.name, str(version.number)))
    try:
        await asyncio.wait_for(_Loading(loaded, cores, on_change).run(), wished.options.load_timeout_s)
    except TimeoutError:
        await _abandon(loaded)
        raise LoadError(
            f"model '{loaded.name}' version {loaded.number} was not ready after load_timeout_s = "
            f"{wished.options.load_timeout_s:g} s"
        ) from None
    except BaseException:
        await _abandon(loaded)
        raise
    return loaded


async def _abandon(loaded: LoadedVersion) -> None:
    if loaded.pool is not None:
        await loaded.pool.close(0.0)
    if loaded.inline is not None:
        await loaded.inline.close(0.0)


class _Loading:
    """The steps of one load."""

    def __init__(self, loaded: LoadedVersion, cores: int, on_change: Callable[[], None]) -> None:
        self._loaded = loaded
        self._options = loaded.options
        self._on_change = on_change
        self._devices = [parse_device(text) for text in self._options.devices]
        self._adapter: Adapter = plugins.load(ADAPTERS, loaded.adapter)  # type: ignore[assignment]
        if self._options.executor == "inline" and not self._adapter.inline_safe:
            raise InvalidInput(
                f"model '{loaded.name}': executor = \"inline\" is for library models; adapter '{loaded.adapter}' runs "
                "user code or holds the interpreter, so it runs in worker processes"
            )
        self._size = _worker_count(self._options, self._devices, self._adapter, cores)
        self._threads, self._borrowed = thread_plan(
            cores, self._size, self._options.threads, self._options.borrow_threads
        )

    async def run(self) -> None:
        loaded, options = self._loaded, self._options
        began = time.monotonic()
        may_inline = self._may_inline()
        hashing = asyncio.create_task(asyncio.to_thread(artifact_sha256, loaded.path))
        # The imports of an inline model overlap with the worker's start.
        importing = asyncio.create_task(asyncio.to_thread(self._preload if may_inline else _nothing))
        try:
            loaded.pool = Pool(
                self._spec, self._size, load_timeout_s=options.load_timeout_s, hang_s=options.hang_s,
                on_change=self._workers_changed,
            )  # fmt: skip
            worker = await loaded.pool.start()
            loaded.signature = worker.signature
            if options.warm_up:
                loaded.findings = await self._warm(worker)
            loaded.sha256 = await hashing
        finally:
            await asyncio.gather(hashing, importing, return_exceptions=True)
        self._make_batcher()
        if may_inline and await self._wants_inline():
            await self._go_inline()
        else:
            loaded.pool.check = self._warm_again
            loaded.pool.on_free = loaded.batcher.wake
            self._workers_changed()
            loaded.pool.grow()
        loaded.loaded_s = time.monotonic() - began

    def _spec(self, worker: int) -> LoadSpec:
        return LoadSpec(adapter=self._loaded.adapter, path=str(self._loaded.path), context=self._context(worker))

    def _context(self, worker: int) -> LoadContext:
        device: Device = deal(self._devices, worker)
        options = self._options
        return LoadContext(
            name=self._loaded.name,
            version=self._loaded.number,
            device=device.name,
            device_fraction=device.fraction,
            threads=self._threads,
            borrowed_threads=self._borrowed,
            trusted=options.trust,
            options=options.options,
            inputs=tuple(parse_spec(name, text) for name, text in options.inputs.items()),
            outputs=tuple(parse_spec(name, text) for name, text in options.outputs.items()),
        )

    async def _warm(self, worker: WorkerProcess) -> Findings:
        findings = await warm_up.warm_up(
            worker.signature, lambda batch: _run_once(worker, batch),
            check_rows=self._loaded.adapter not in OWN_WORD,
            max_rows=self._options.max_batch_size,
        )  # fmt: skip
        if not findings.rows_independent:
            log.warning(
                "batching_off",
                extra={
                    "model": self._loaded.name,
                    "reason": "joined rows gave other answers than single ones: axis 0 is no batch, or it is random",
                },
            )
        return findings

    async def _warm_again(self, worker: WorkerProcess) -> None:
        if self._loaded.findings.answered:
            await warm_up.warm_up(
                worker.signature, lambda batch: _run_once(worker, batch), check_rows=False, max_rows=1
            )

    def _make_batcher(self) -> None:
        loaded, options = self._loaded, self._options
        findings = loaded.findings
        joinable = loaded.signature.batchable and options.batch and findings.rows_independent
        limits = batch_limits(options, loaded.signature.batch)
        if not (joinable and findings.worth_joining):
            limits = BatchLimits(1)
        loaded.check = RequestCheck(loaded.signature)
        loaded.batcher = Batcher(
            loaded.name, str(loaded.number), limits, joinable=joinable, max_queue=options.max_queue,
            recorder=loaded.metrics,
        )  # fmt: skip
        loaded.metrics.probes = Probes(
            in_flight=lambda: loaded.batcher.in_flight, queued=lambda: loaded.batcher.queued, workers=loaded.workers
        )

    def _workers_changed(self) -> None:
        loaded = self._loaded
        if loaded.inline is None and loaded.pool is not None and hasattr(loaded, "batcher"):
            loaded.batcher.set_executors(loaded.pool.workers)
        self._on_change()

    # --- inline ---

    def _may_inline(self) -> bool:
        self._loaded.size_bytes = _size_bytes(self._loaded.path)
        return (
            self._options.executor != "process"
            and self._adapter.inline_safe
            and all(device.name == "cpu" for device in self._devices)
            and (self._options.executor == "inline" or self._loaded.size_bytes <= INLINE_SIZE_BYTES)
        )

    def _preload(self) -> None:
        for module in self._adapter.preload:
            try:
                importlib.import_module(module)
            except ImportError:
                return  # the worker's own error says it better

    async def _wants_inline(self) -> bool:
        signature, findings = self._loaded.signature, self._loaded.findings
        if not signature.inline_safe:
            return False
        if self._options.executor == "inline":
            return True
        slowest_s = findings.many_rows_s or findings.one_row_s
        return self._options.workers is None and slowest_s is not None and slowest_s <= INLINE_BATCH_S

    async def _go_inline(self) -> None:
        loaded = self._loaded
        # One thread: the loop waits for it, and a second one would only add a wake-up to a few microseconds of work.
        context = dataclasses.replace(self._context(0), threads=1, borrowed_threads=0)
        inline = await InlineExecutor.load(self._adapter, loaded.path, context)
        loaded.inline = inline

        async def run(batch: Batch) -> BatchResult:
            result = inline.run_now(batch)
            if isinstance(result, PenstockError):
                raise result
            return result

        if self._options.warm_up:
            await warm_up.warm_up(inline.signature, run, check_rows=False, max_rows=1)
        assert loaded.pool is not None
        pool, loaded.pool = loaded.pool, None
        await pool.close(1.0)
        loaded.batcher.set_executors([inline])


async def _run_once(worker: WorkerProcess, batch: Batch) -> BatchResult:
    """The result of one batch on a worker; of a stream, its first answer. Raises what the worker reports."""
    if worker.signature.streaming:
        began = time.monotonic()
        answers = worker.stream(batch.parts[0], batch.parameters or {})
        try:
            first = dict(await anext(answers, {}))
        finally:
            await answers.aclose()
        return BatchResult(first, 0.0, time.monotonic() - began, 0.0)
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

    def done(result: BatchResult | PenstockError) -> None:
        if future.done():
            return
        if isinstance(result, PenstockError):
            future.set_exception(result)
        else:
            future.set_result(result)

    worker.run(batch, done)
    return await future


def batch_limits(options: ModelOptions, declared: DeclaredBatch | None) -> BatchLimits:
    """The limits of one batch: what the user set, else what the model's code declares, else the defaults."""
    unset = ModelOptions()
    if declared is None:
        return BatchLimits(options.max_batch_size, options.batch_delay_s, options.batch_sizes)
    return BatchLimits(
        declared.max_size if options.max_batch_size == unset.max_batch_size else options.max_batch_size,
        declared.delay_s if options.batch_delay_s == unset.batch_delay_s else options.batch_delay_s,
        declared.sizes if options.batch_sizes == unset.batch_sizes else options.batch_sizes,
    )


def _worker_count(options: ModelOptions, devices: list[Device], adapter: Adapter, cores: int) -> int:
    """Workers as told, else: as many as fill the named accelerators; one for user code, whose memory and state only its
    author knows; two for library models where there are cores for them."""
    if options.workers is not None:
        return options.workers
    on_devices = workers_that_fit(devices)
    if on_devices is not None:
        return on_devices
    return 1 if adapter.name in OWN_WORD else min(2, cores)


def _size_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _nothing() -> None:
    return
