"""What an extra front process runs: listeners on the shared ports, and the remote door. Ends when its engine ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import sys
from typing import Any

import msgspec

from penstock.core.errors import PenstockError
from penstock.runtime.fronts import wire
from penstock.runtime.fronts.remote import RemoteEngine
from penstock.runtime.listeners.grpc import GrpcListener
from penstock.runtime.listeners.http import HttpListener
from penstock.runtime.listeners.witness import Witness
from penstock.runtime.listening import (
    LAST_SPANS_S,
    allow_open_files,
    grpc_options,
    grpc_protocols,
    http_options,
    http_protocols,
    server_tls,
    spans,
)
from penstock.runtime.options import ServerOptions
from penstock.runtime.workers import heap
from penstock.telemetry import logs
from penstock.telemetry.spans import SpanCounts, Spans

# How often the engine gets what the copies have recorded: that much is lost when this front is killed.
_FLUSH_S = 0.05
_FLUSHES_PER_FIGURES = 5  # what the listener has counted goes over less often: it costs a look at every copy
_FLUSHES_PER_JUDGEMENT = 20  # of whether copies have become slow


async def front(sock: socket.socket) -> int:
    """Serves until the engine says drain or is gone; the exit status."""
    loop = asyncio.get_running_loop()
    setup: asyncio.Future[wire.Setup] = loop.create_future()
    drain: asyncio.Future[float] = loop.create_future()
    _, engine = await loop.create_unix_connection(lambda: RemoteEngine(setup.set_result, drain.set_result), sock=sock)
    began: set[asyncio.Future[Any]] = {setup, engine.closed}
    await asyncio.wait(began, return_when=asyncio.FIRST_COMPLETED)
    if not setup.done():
        return 1  # the engine's process ended before it could say what to do
    wished = setup.result()
    allow_open_files()
    options = msgspec.convert(wished.options, ServerOptions)
    logs.configure(options.log_format, options.log_level, access=options.access_log)
    recorded = spans(options)
    witness = Witness(recorded, options.access_log) if recorded is not None or options.access_log else None
    listener = HttpListener(engine, http_protocols(), http_options(options, wished.api_keys, witness))
    engine.on_stopping = listener.wind_down
    grpc: GrpcListener | None = None
    try:
        await listener.start(wished.host, wished.http_port, reuse_port=True, ssl=server_tls(options))
        if wished.grpc_port is not None:
            grpc = GrpcListener(engine, grpc_protocols(), grpc_options(options, wished.api_keys, witness))
            await grpc.start(wished.host, wished.grpc_port)
    except (OSError, PenstockError) as error:
        sys.stderr.write(f"front cannot listen on {wished.host}: {error}\n")
        return 1
    engine.send(wire.Started())
    figures = loop.create_task(_report(engine, listener, recorded))
    tidying = loop.create_task(heap.keep_small())
    try:
        ends: set[asyncio.Future[Any]] = {drain, engine.closed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        grace_s = drain.result() if drain.done() else 0.0
        listener.stop_accepting()
        await asyncio.gather(listener.drain(grace_s), *([grpc.stop(grace_s)] if grpc is not None else []))
        await engine.copies.close()
        return 0
    finally:
        figures.cancel()
        tidying.cancel()
        if recorded is not None:
            await asyncio.to_thread(recorded.close, LAST_SPANS_S)
        engine.close()


async def _report(engine: RemoteEngine, listener: HttpListener, recorded: Spans | None) -> None:
    for tick in itertools.count():
        await asyncio.sleep(_FLUSH_S)
        engine.copies.flush()
        if tick % _FLUSHES_PER_JUDGEMENT == 0:
            engine.copies.give_up_slow()
        if tick % _FLUSHES_PER_FIGURES:
            continue
        counters = listener.counters
        counts = recorded.counts if recorded is not None else SpanCounts()
        engine.send(
            wire.Figures(
                list(counters.responses),
                dict(counters.refused),
                counters.connections_open,
                engine.copies.busy(),
                (counts.exported, counts.dropped, counts.failed),
            )
        )


def main() -> None:
    """The process's entry point. Its arguments: the number of the inherited socket, and the engine's `wire.VERSION`."""
    if sys.argv[2:] != [str(wire.VERSION)]:
        sys.exit(
            f"front: the engine speaks version {' '.join(sys.argv[2:]) or 'none'} of the front protocol, this process "
            f"{wire.VERSION}: the package was replaced under a running server; restart it"
        )
    import uvloop

    # Service managers send theirs to every process; the engine's process decides when a front ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    heap.share_one()
    with (
        contextlib.closing(socket.socket(fileno=int(sys.argv[1]))) as sock,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        sys.exit(runner.run(front(sock)))


if __name__ == "__main__":
    main()
