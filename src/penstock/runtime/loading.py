"""How a version comes to be ready: loaded in a worker, warmed, measured, and put where it runs best.

Every load happens first in a worker process, so that a file which crashes its framework ends a worker, not the server.
Small, fast, library-only models are then loaded a second time into the front, and the worker ends. They are watched:
one that turns out slow under real requests goes back to worker processes, while it serves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from penstock import plugins
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, LoadError, PenstockError
from penstock.core.resources import Device, deal, parse_device
from penstock.core.servable import Adapter, LoadContext
from penstock.core.tensor import parse_spec
from penstock.runtime import warm_up
from penstock.runtime.artifact import Snapshot, artifact_sha256
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.batching.ledger import Occupancy
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.checking import RequestCheck
from penstock.runtime.disk import from_disk
from penstock.runtime.graph_loading import bring_up
from penstock.runtime.graphs.files import ADAPTER as GRAPH
from penstock.runtime.language.wire import shown
from penstock.runtime.sizing import OWN_WORD, asked_to_join, batch_limits, process_bytes, size_bytes, worker_count
from penstock.runtime.sources import WishedModel, WishedVersion
from penstock.runtime.version import InlineCopy, LoadedVersion
from penstock.runtime.warm_up import Findings
from penstock.runtime.workers import Batch, BatchResult, heap
from penstock.runtime.workers.frame import LoadSpec
from penstock.runtime.workers.inline import InlineExecutor
from penstock.runtime.workers.pool import Pool
from penstock.runtime.workers.process import WorkerProcess
from penstock.runtime.workers.threads import thread_plan
from penstock.telemetry.metrics import Metrics

log = logging.getLogger("penstock.loading")

ADAPTERS = "penstock.runtime.adapters"

# A batch in the front's loop delays every other request by its length, so only short ones may run there. A hop to a
# worker and back takes 30 to 80 us (bench/worker_channel.py), and up to twice that is made good by not taking it.
INLINE_BATCH_S = 150e-6
# With real requests and full batches; twice the admission, so that a model near it does not go to and fro.
INLINE_LONGEST_S = 2 * INLINE_BATCH_S
_CHANGED = "changed while the model was loaded; it is loaded again once it stays the same"
_WATCH_S, _LONGEST_WATCH_S = 1.0, 60.0
# Models above this size stay in processes of their own, so that ending one gives all its memory back.
INLINE_SIZE_BYTES = 64 << 20


async def load(
    wished: WishedModel,
    version: WishedVersion,
    metrics: Metrics,
    cores: int,
    occupancy: Occupancy,
    serial: int,
    on_change: Callable[[], None],
    whole: bool = False,
    door: Door | None = None,
) -> LoadedVersion:
    """A version that has answered a real warm-up through its real path. `on_change` is called when its workers change.
    `serial` is another one for every load of this process. With `whole` it has all its workers, because it is to
    replace one that has; else the others start while the first one serves. A graph asks through `door`.

    Raises:
        LoadError, InvalidInput: it could not be loaded, warmed or checked; nothing of it is left running.
    """
    loaded = LoadedVersion(wished, version, metrics.model(wished.options.name, str(version.number)))
    loaded.serial = serial
    try:
        if wished.adapter == GRAPH:
            assert door is not None
            work = bring_up(loaded, door)
        else:
            work = _Loading(loaded, cores, occupancy, serial, on_change).run(whole)
        async with asyncio.timeout(loaded.options.load_timeout_s):
            await work
    except TimeoutError:
        await loaded.free(0.0)
        raise LoadError(
            f"model '{loaded.name}' version {loaded.number} was not ready after load_timeout_s = "
            f"{loaded.options.load_timeout_s:g} s"
        ) from None
    except BaseException:
        await loaded.free(0.0)
        raise
    return loaded


class _Loading:
    """The steps of one load."""

    def __init__(
        self, loaded: LoadedVersion, cores: int, occupancy: Occupancy, serial: int, on_change: Callable[[], None]
    ) -> None:
        self._loaded = loaded
        self._serial = serial
        self._occupancy = occupancy
        self._options = loaded.options
        self._on_change = on_change
        self._changed = asyncio.Event()  # a worker came, went, or could not be started
        self._worker_bytes = 0
        self._snapshot: Snapshot  # of the files that were loaded
        self._devices = [parse_device(text) for text in self._options.devices]
        self._adapter = cast(Adapter, plugins.load(ADAPTERS, loaded.adapter))
        if self._options.executor == "inline" and not self._adapter.inline_safe:
            raise InvalidInput(
                f"model '{loaded.name}': executor = \"inline\" is for library models; adapter '{loaded.adapter}' runs "
                "user code or holds the interpreter, so it runs in worker processes"
            )
        self._size = worker_count(self._options, self._devices, self._adapter, cores)
        if self._options.max_workers is not None:
            self._size = self._options.workers or 1
        self._threads, self._borrowed = thread_plan(
            cores, self._options.max_workers or self._size, self._options.threads, self._options.borrow_threads
        )

    async def run(self, whole: bool) -> None:
        began = time.monotonic()
        self._snapshot = await from_disk(Snapshot, self._loaded.path)
        try:
            await self._bring_up(whole)
        except LoadError as error:
            # Half-written files fail in as many ways as there are kinds of files; none of them is the owner's mistake.
            if name := await from_disk(self._snapshot.changed):
                raise LoadError(f"{name} {_CHANGED} ({error})") from error
            raise
        if name := await from_disk(self._snapshot.changed):
            raise LoadError(f"{name} {_CHANGED}")
        self._loaded.loaded_s = time.monotonic() - began

    async def _bring_up(self, whole: bool) -> None:
        loaded, options = self._loaded, self._options
        may_inline = await from_disk(self._may_inline)  # looks at the files' sizes
        given_up = threading.Event()  # a thread cannot be cancelled, and a stop or a failure must not wait for this one
        hashing = asyncio.create_task(from_disk(artifact_sha256, loaded.path, given_up))
        # The imports of an inline model overlap with the worker's start.
        importing = asyncio.create_task(asyncio.to_thread(self._preload if may_inline else _nothing))
        try:
            if options.sha256:
                self._expect(await hashing)  # before anything opens the files
            loaded.pool = self._make_pool()
            worker = await loaded.pool.start()
            loaded.signature = worker.signature
            if options.warm_up:
                loaded.findings = await self._warm(worker)
            loaded.signature = shown(loaded.signature)
            loaded.sha256 = await hashing
        finally:
            given_up.set()
            hashing.cancel()
            await asyncio.gather(hashing, importing, return_exceptions=True)
        inline = may_inline and self._belongs_inline()
        if not inline:
            loaded.pool.check = self._check_again
            loaded.pool.grow()
            if whole:
                await self._all_workers(loaded.pool)
        self._make_batcher()
        if inline:
            await self._go_inline()
        else:
            self._use_pool(loaded.pool)
            self._measure_workers()
        loaded.revive = self._revive

    def _expect(self, sha256: str) -> None:
        expected = self._options.sha256.get(str(self._loaded.number), "").lower()
        if not expected:
            raise LoadError(f"sha256 names no version {self._loaded.number}, whose content has {sha256}")
        if sha256 != expected:
            raise LoadError(f"the content has SHA-256 {sha256}, and sha256 expects {expected}")

    async def _check_again(self, worker: WorkerProcess) -> None:
        """A later worker loaded from the same files, which may be others by now."""
        await self._expect_same_files()
        await self._warm_again(worker)

    async def _expect_same_files(self) -> None:
        """Under this version's number nothing else may be served."""
        if name := await from_disk(self._snapshot.changed):
            if await from_disk(artifact_sha256, self._loaded.path) != self._loaded.sha256:
                raise LoadError(f"{name} is no longer what version {self._loaded.number} was loaded from")
            self._snapshot = await from_disk(Snapshot, self._loaded.path)

    # --- resting ---

    async def _revive(self) -> None:
        """Loads again what rests, as it was. Raises: LoadError; then it rests on."""
        loaded, timeout_s = self._loaded, self._options.load_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                if loaded.executor == "inline":
                    await self._expect_same_files()
                    loaded.inline = await self._load_inline()
                else:
                    loaded.pool = await self._checked_pool()
        except TimeoutError:
            raise LoadError(f"it was not ready after load_timeout_s = {timeout_s:g} s") from None
        loaded.resting = False
        if loaded.inline is not None:
            self._watch(loaded.inline)
            loaded.use_current_executors()
        elif loaded.pool is not None:
            self._measure_workers()
            self._use_pool(loaded.pool)

    def _measure_workers(self) -> None:
        """Each counts as much as the largest so far, also those that are still to come."""
        pool = self._loaded.pool
        if pool is not None:
            self._worker_bytes = max([self._worker_bytes, *(process_bytes(worker.pid) for worker in pool.workers)])
            self._loaded.size_bytes = self._worker_bytes * pool.size

    async def _checked_pool(self) -> Pool:
        """A new pool whose first worker has loaded the same files and answered; the others follow."""
        pool = self._make_pool()
        try:
            await self._check_again(await pool.start())
        except BaseException:
            await pool.close(0.0)
            raise
        pool.check = self._check_again
        pool.grow()
        return pool

    # --- worker processes ---

    def _make_pool(self) -> Pool:
        return Pool(
            self._spec,
            self._size,
            load_timeout_s=self._options.load_timeout_s,
            timeout_s=self._options.timeout_s,
            hang_s=self._options.hang_s,
            on_change=self._workers_changed,
        )

    def _use_pool(self, pool: Pool) -> None:
        pool.on_free = self._loaded.batcher.wake
        if self._options.max_workers is not None:
            pool.adapt(self._options.max_workers, self._loaded.batcher.waited_s)
        self._workers_changed()

    async def _all_workers(self, pool: Pool) -> None:
        while len(pool.workers) < pool.size:
            if reasons := [str(row["reason"]) for row in pool.status() if row.get("reason")]:
                raise LoadError(f"only {len(pool.workers)} of {pool.size} workers could be started: {reasons[0]}")
            self._changed.clear()
            await self._changed.wait()

    def _workers_changed(self) -> None:
        self._changed.set()
        loaded = self._loaded
        if loaded.inline is None and hasattr(loaded, "batcher"):
            loaded.use_current_executors()
            if loaded.pool is not None:
                loaded.size_bytes = self._worker_bytes * loaded.pool.size
        self._on_change()

    def _spec(self, worker: int) -> LoadSpec:
        adapter, path, limit = self._loaded.adapter, str(self._loaded.path), self._options.max_memory_bytes
        # A language model's engine may need libraries that this environment has not, or not in that version.
        told = self._options.options.get("python", "") if adapter == "language" else ""
        python = str(Path(str(told)).expanduser()) if told else ""
        return LoadSpec(adapter=adapter, path=path, context=self._context(worker), memory_bytes=limit, python=python)

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
        limits = self._limits()
        findings = await warm_up.warm_up(
            worker.signature,
            lambda batch: _run_once(worker, batch),
            check_rows=self._loaded.adapter not in OWN_WORD,
            max_rows=limits.most_rows,
            sizes=limits.sizes,
        )
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
                worker.signature,
                lambda batch: _run_once(worker, batch),
                check_rows=False,
                max_rows=1,
                sizes=self._limits().sizes,
            )

    def _limits(self) -> BatchLimits:
        """Of one batch, as far as they are known before the model has shown what joining is worth."""
        if not self._options.batch:
            return BatchLimits(self._options.max_batch_size)
        return batch_limits(self._options, self._loaded.signature.batch)

    def _make_batcher(self) -> None:
        loaded, options = self._loaded, self._options
        findings = loaded.findings
        joinable = loaded.signature.batchable and options.batch and findings.rows_independent
        limits = self._limits() if joinable else BatchLimits(1, join=False)
        if joinable and not findings.worth_joining and not asked_to_join(options, loaded.signature.batch):
            limits = dataclasses.replace(limits, join=False)
        loaded.check = RequestCheck(loaded.signature)
        loaded.batcher = Batcher(
            loaded.name,
            str(loaded.number),
            limits,
            joinable=joinable,
            max_queue=options.max_queue,
            recorder=loaded.metrics,
            occupancy=self._occupancy,
            shed=options.shed,
        )

    # --- inline ---

    def _may_inline(self) -> bool:
        return (
            self._options.executor != "process"
            and self._options.max_memory_bytes is None
            and self._adapter.inline_safe
            and all(device.name == "cpu" for device in self._devices)
            and (self._options.executor == "inline" or size_bytes(self._loaded.path) <= INLINE_SIZE_BYTES)
        )

    def _preload(self) -> None:
        for module in self._adapter.preload:
            try:
                importlib.import_module(module)
            except ImportError:
                return  # the worker's own error says it better

    def _belongs_inline(self) -> bool:
        signature, findings = self._loaded.signature, self._loaded.findings
        if not signature.inline_safe:
            return False
        if self._options.executor == "inline":
            return True
        slowest_s = findings.many_rows_s or findings.one_row_s
        set_by_hand = self._options.workers is not None or self._options.max_workers is not None
        return not set_by_hand and slowest_s is not None and slowest_s <= INLINE_BATCH_S

    async def _go_inline(self) -> None:
        loaded = self._loaded
        loaded.inline = await self._load_inline()
        assert loaded.pool is not None
        pool, loaded.pool = loaded.pool, None
        await pool.close(1.0)
        loaded.copy = InlineCopy(
            self._serial,
            loaded.adapter,
            str(loaded.path),
            loaded.sha256,
            self._inline_context(),
            loaded.batcher.limits,
            loaded.batcher.joinable,
            self._options.max_queue,
            self._options.shed,
            self._options.timeout_s,
        )
        loaded.use_current_executors()
        self._watch(loaded.inline)

    def _inline_context(self) -> LoadContext:
        # One thread: the loop waits for it, and a second one would only add a wake-up to a few microseconds of work.
        return dataclasses.replace(self._context(0), threads=1, borrowed_threads=0)

    async def _load_inline(self) -> InlineExecutor:
        """A new executor that has answered. What it allocated meanwhile, and no less than its files, is its size."""
        least, before = await from_disk(size_bytes, self._loaded.path), heap.in_use_bytes()
        inline = await InlineExecutor.load(self._adapter, self._loaded.path, self._inline_context())

        async def run(batch: Batch) -> BatchResult:
            result = inline.run_now(batch)
            if isinstance(result, PenstockError):
                raise result
            return result

        try:
            if self._options.warm_up:
                await warm_up.warm_up(inline.signature, run, check_rows=False, max_rows=1, sizes=self._limits().sizes)
        except BaseException:
            await inline.close(0.0)
            raise
        inline.forget_times()
        self._loaded.size_bytes = max(least, heap.in_use_bytes() - before)
        return inline

    def _watch(self, inline: InlineExecutor) -> None:
        if self._options.executor == "auto":
            self._loaded.watch = asyncio.create_task(self._leave_inline_when_slow(inline))

    async def _leave_inline_when_slow(self, inline: InlineExecutor) -> None:
        """Ends when the model has moved to worker processes. Two looks in a row must find it slow: one may fall into a
        moment when the machine was busy with something else."""
        slow_before, wait_s = False, _WATCH_S
        while True:
            await asyncio.sleep(wait_s)
            slow = slow_inline(inline)
            if slow and slow_before:
                if await self._leave_inline(inline):
                    return
                wait_s = min(2 * wait_s, _LONGEST_WATCH_S)
            slow_before = slow

    async def _leave_inline(self, inline: InlineExecutor) -> bool:
        """Whether the model has moved to worker processes; else it is as before, and the log says why."""
        loaded = self._loaded
        log.info("leaving_inline", extra={"model": loaded.name, "batch_s": round(inline.compute_s, 6)})
        loaded.moving = True
        try:
            pool = await self._checked_pool()
        except Exception as error:  # no more processes, threads or memory for a moment, and what nobody thought of
            fields = {"model": loaded.name, "error": str(error) or type(error).__name__}
            log.error("leaving_inline_failed", extra=fields, exc_info=not isinstance(error, PenstockError))
            return False
        finally:
            loaded.moving = False
        loaded.pool, loaded.inline, loaded.copy = pool, None, None
        self._measure_workers()
        self._use_pool(pool)
        await inline.close(0.0)
        return True


def slow_inline(inline: InlineExecutor) -> bool:
    """Whether real batches take longer than a front's loop should be held."""
    return inline.compute_s > INLINE_LONGEST_S


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


def _nothing() -> None:
    return
