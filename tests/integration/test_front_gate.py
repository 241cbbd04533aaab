"""The engine's end of a front's link, with a real engine and a real socket."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from pathlib import Path

import msgspec

from penstock.runtime.engine import Engine
from penstock.runtime.fronts import wire
from penstock.runtime.fronts.gate import Gate
from penstock.runtime.manager import Manager
from penstock.runtime.options import ServerOptions
from penstock.runtime.repository import ModelRepository
from penstock.runtime.tracing import Tracing
from penstock.telemetry.metrics import Metrics

STREAMS = 500


def framed(message: wire.ToEngine) -> bytes:
    header = msgspec.msgpack.encode(message)
    return struct.pack("<II", len(header), 0) + header


def semaphores() -> int:
    gc.collect()
    return sum(isinstance(each, asyncio.Semaphore) for each in gc.get_objects())


async def test_stream_that_is_cancelled_before_it_begins_leaves_nothing(tmp_path: Path) -> None:
    metrics = Metrics()
    manager = Manager(metrics, 2)
    engine = Engine(manager, ModelRepository([], manager, ServerOptions()), Tracing(), metrics, lambda _: {})
    ours, theirs = socket.socketpair()
    _, gate = await asyncio.get_running_loop().create_unix_connection(lambda: Gate(engine), sock=ours)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    before = semaphores()
    ask = wire.Infer(0, "none", "", "", {}, (), 1e12, 0, 0.0, [], stream=True)
    for number in range(STREAMS):  # both in one read, as when a client leaves at once
        writer.write(framed(msgspec.structs.replace(ask, id=number)) + framed(wire.Cancel(number)))
    writer.write(framed(wire.Call(STREAMS, "index", [])))
    await writer.drain()
    await reader.read(1)  # the answer to the last message, so the others were taken in
    assert semaphores() - before < 5
    writer.close()
    await gate.closed
    await manager.close(0)
