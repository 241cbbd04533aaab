"""Puts one replica together, runs it until a stop signal, and takes it apart again in the right order.

Stopping: not ready at once → the lame-duck window, still serving → no new connections → what is in flight finishes, at
most `grace_s` → everything closes. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import platform
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import penstock
from penstock.core.door import ModelDescription
from penstock.core.errors import InvalidInput
from penstock.protocols import AnswersLines, HttpProtocol
from penstock.runtime.disk import from_disk
from penstock.runtime.engine import Engine
from penstock.runtime.fronts.supervisor import Fronts
from penstock.runtime.language.kept import Kept
from penstock.runtime.language.state import StateFolder
from penstock.runtime.listeners.grpc import GrpcListener
from penstock.runtime.listeners.http import HttpListener
from penstock.runtime.listeners.witness import Witness
from penstock.runtime.listening import (
    LAST_SPANS_S,
    allow_open_files,
    api_keys,
    grpc_options,
    grpc_protocols,
    http_options,
    http_protocols,
    server_tls,
    spans,
)
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.repository import ModelRepository
from penstock.runtime.residency import Residency
from penstock.runtime.sources.local import LocalSource
from penstock.runtime.tracing import Tracing
from penstock.runtime.workers import heap
from penstock.runtime.workers.cgroup import available_cores
from penstock.telemetry import logs
from penstock.telemetry.metrics import ListenerFigures, Metrics
from penstock.telemetry.spans import SpanCounts, Spans

log = logging.getLogger("penstock.server")

Models = Sequence[ModelOptions] | Callable[[], Sequence[ModelOptions]]
"""The models to serve, or what tells them anew at each look at the folders."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server that answers: where, and with what."""

    http_url: str
    grpc_address: str | None
    models: list[ModelDescription]
    pid: int
    sha256: Mapping[str, Mapping[str, str]]  # of the content of every ready version, by model and version


async def run(
    server: ServerOptions,
    models: Models,
    *,
    on_ready: Callable[[ServerStatus], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP (or until `stop` is set, by an owner who keeps the signals for itself).

    Raises:
        PenstockError: it could not start: a port is taken, a listener is unsafe, a model does not load.
    """
    signalled = _stop_signal() if stop is None else stop
    starting = asyncio.create_task(_serve(server, models, on_ready, signalled))
    stopping = asyncio.create_task(signalled.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    await starting


async def _serve(
    server: ServerOptions,
    models: Models,
    on_ready: Callable[[ServerStatus], None] | None,
    stop: asyncio.Event,
) -> None:
    async with serving(server, models, stop) as status:
        if status is None:
            return
        if on_ready is not None:
            on_ready(status)
        await stop.wait()
        log.info("stopping", extra={"grace_s": server.grace_s})


@contextlib.asynccontextmanager
async def serving(server: ServerOptions, models: Models, stop: asyncio.Event) -> AsyncIterator[ServerStatus | None]:
    """A server that answers while the context lasts, and that has drained when it ends. None: told to stop before it
    was ready. Raises: see `run`."""
    keys = api_keys(server)
    tls = server_tls(server)
    allow_open_files()
    log_handle = logs.configure(server.log_format, server.log_level, access=server.access_log)
    recorded = spans(server)
    witness = Witness(recorded, server.access_log) if recorded is not None or server.access_log else None
    metrics = Metrics(_build())
    residency = Residency(server.models_memory_bytes, server.idle_unload_s, available_cores())
    metrics.residency = residency.figures
    manager = Manager(metrics, available_cores(), residency)
    repository = ModelRepository([LocalSource(models, settle=server.model_control == "poll")], manager, server)
    engine = Engine(
        manager, repository, Tracing(), metrics, lambda update: log_handle.update(update or {}), keys.limits
    )
    manager.door = engine
    protocols = http_protocols()
    engine.kept = kept = await _kept(engine, protocols, server.state)
    http = HttpListener(engine, protocols, http_options(server, keys.keys, witness))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(kept.close)  # last: what is in flight is kept too
        stack.push_async_callback(_close_models, manager, engine)
        stack.push_async_callback(repository.close)
        loading = asyncio.create_task(repository.start())
        stack.push_async_callback(_cancelled, loading)
        http_port = await _bound(
            "http_port",
            server.http_port,
            http.start(server.host, server.http_port, reuse_port=server.fronts > 1, ssl=tls),
        )
        stack.push_async_callback(http.drain, 0.0)  # for a start that fails below; after `_drain` nothing is left to do
        grpc = GrpcListener(engine, grpc_protocols(), grpc_options(server, keys.keys, witness)) if server.grpc else None
        grpc_port = await grpc.start(server.host, server.grpc_port) if grpc else None
        fronts = Fronts(engine, server, keys.keys, http_port, grpc_port)
        engine.on_tracing = fronts.publish

        def changed() -> None:
            engine.note_change()
            fronts.publish()

        manager.on_change = changed
        engine.before_reading = fronts.tell
        metrics.listener("http", lambda: _http_figures(http, fronts))
        if recorded is not None:
            metrics.spans = lambda: _span_counts(recorded, fronts)
            stack.push_async_callback(asyncio.to_thread, recorded.close, LAST_SPANS_S)
        stack.push_async_callback(_drain, engine, server, http, grpc, fronts)
        stack.push_async_callback(kept.stop)  # before what is in flight finishes: nobody waits for it
        if not await _before(stop, loading):
            yield None
            return
        starting = asyncio.create_task(fronts.start())
        stack.push_async_callback(_cancelled, starting)
        if not await _before(stop, starting):
            yield None
            return
        manager.started = True
        changed()
        await kept.resume()
        _settle_garbage()
        stack.push_async_callback(_cancelled, asyncio.create_task(heap.keep_small()))
        yield _status(engine, server, http_port, grpc_port, tls is not None)


async def _drain(
    engine: Engine, server: ServerOptions, http: HttpListener, grpc: GrpcListener | None, fronts: Fronts
) -> None:
    engine.stopping = True
    engine.note_change()
    fronts.publish()
    http.wind_down()
    if engine.started:
        await asyncio.sleep(server.lame_duck_s)
    engine.close_by = time.monotonic() + server.grace_s
    http.stop_accepting()
    work: list[Coroutine[Any, Any, Any]] = [http.drain(server.grace_s), fronts.drain(server.grace_s)]
    if grpc is not None:
        work.append(grpc.stop(server.grace_s))
    await asyncio.gather(*work)


async def _kept(engine: Engine, protocols: Sequence[HttpProtocol], folder: str | None) -> Kept:
    """What the server keeps. Raises: see `StateFolder.open`."""
    answers = next(protocol for protocol in protocols if isinstance(protocol, AnswersLines))
    state = None if folder is None else await from_disk(StateFolder.open, folder)
    kept = Kept(functools.partial(answers.answer_line, door=engine), answers.wishes(engine), state)
    await kept.restore()
    return kept


async def _close_models(manager: Manager, engine: Engine) -> None:
    """Closes every version in what is left of the grace: batches whose callers were cut may still compute."""
    await manager.close(max(0.0, engine.close_by - time.monotonic()))
    engine.close()


async def _before(stop: asyncio.Event, task: asyncio.Task[None]) -> bool:
    """Whether the task ended before `stop` was set. Raises: what the task raises."""
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if task.done():
        await task
    return task.done()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait({task})


async def _bound(option: str, port: int, start: Coroutine[Any, Any, int]) -> int:
    """The bound port. Raises: InvalidInput that names the option when it cannot be bound."""
    try:
        return await start
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {option} = {port}: {error.strerror or error}; another port is free with 0"
        ) from error


def _stop_signal() -> asyncio.Event:
    """Set by SIGTERM, SIGINT or a terminal that goes away; a second SIGTERM or SIGINT ends the process at once."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def stop(number: int) -> None:
        if event.is_set():
            os._exit(128 + number)  # workers and fronts see their sockets close, and end
        event.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # under nohup it is to be ignored
        loop.add_signal_handler(signal.SIGHUP, event.set)  # shells may send it twice, so it never hurries
    return event


def _http_figures(http: HttpListener, fronts: Fronts) -> ListenerFigures:
    counters = http.counters
    responses, refused, connections = list(counters.responses), dict(counters.refused), counters.connections_open
    for figures in fronts.figures:
        responses = [mine + other for mine, other in zip(responses, figures.responses, strict=True)]
        for reason, count in figures.refused.items():
            refused[reason] = refused.get(reason, 0) + count
        connections += figures.open_connections
    by_class = {f"{digit}xx": count for digit, count in enumerate(responses) if digit}
    return ListenerFigures(by_class, refused, connections)


def _span_counts(recorded: Spans, fronts: Fronts) -> SpanCounts:
    own = recorded.counts
    total = SpanCounts(own.exported, own.dropped, own.failed)
    for figures in fronts.figures:
        exported, dropped, failed = figures.spans
        total.exported += exported
        total.dropped += dropped
        total.failed += failed
    return total


def _build() -> dict[str, str]:
    return {"version": penstock.__version__, "python": platform.python_version()}


def _status(engine: Engine, server: ServerOptions, http_port: int, grpc_port: int | None, tls: bool) -> ServerStatus:
    host = f"[{server.host}]" if ":" in server.host else server.host
    return ServerStatus(
        f"{'https' if tls else 'http'}://{host}:{http_port}",
        None if grpc_port is None else f"{host}:{grpc_port}",
        [engine.describe(name) for name in engine.models()],
        os.getpid(),
        {name: _contents(engine, name) for name in engine.models()},
    )


def _contents(engine: Engine, name: str) -> dict[str, str]:
    versions = engine.describe(name).versions
    return {str(version): engine.describe(name, str(version)).sha256 for version in versions}


def _settle_garbage() -> None:
    """Takes what the start made out of the collector's sight. Requests make no cycles, so collections find nothing on
    the hot path; the younger generation's threshold is raised so that they also look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
