"""The engine's end of a front's link, with a real engine and a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from penstock.runtime.engine import Engine
from penstock.runtime.fronts import wire
from penstock.runtime.fronts.gate import Gate
from penstock.runtime.manager import Manager
from penstock.runtime.options import ModelOptions, ServerOptions
from penstock.runtime.repository import ModelRepository
from penstock.runtime.sources.memory import MemorySource
from penstock.runtime.tracing import Tracing
from penstock.telemetry.metrics import Metrics

STREAMS = 500
CODE = """
import penstock

@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
def one(x):
    return {"y": x}
"""


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


@contextlib.asynccontextmanager
async def front_of(model: Path) -> AsyncIterator[tuple[Manager, Gate, asyncio.StreamWriter]]:
    """The engine's gate and the front's end of its link, of an engine that serves `model` as "m"."""
    metrics = Metrics()
    manager = Manager(metrics, 2)
    manager.apply(MemorySource([ModelOptions(name="m", path=str(model), workers=1, warm_up=False)]).poll())
    await manager.settled()
    engine = Engine(manager, ModelRepository([], manager, ServerOptions()), Tracing(), metrics, lambda _: {})
    ours, theirs = socket.socketpair()
    _, gate = await asyncio.get_running_loop().create_unix_connection(lambda: Gate(engine), sock=ours)
    _, writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield manager, gate, writer
    finally:
        writer.close()
        gate.close()
        await manager.close(0)


async def told(gate: Gate, writer: asyncio.StreamWriter, *copies: tuple[str, str, int, int]) -> None:
    """Returns when the engine has taken in what its front says of its copies."""
    before = gate.figures
    writer.write(framed(wire.Figures([0] * 6, {}, 0, list(copies))))
    async with asyncio.timeout(10):
        while gate.figures is before:  # noqa: ASYNC110  # the link tells nobody of figures
            await asyncio.sleep(0.001)


async def test_figures_of_a_copy_go_when_the_front_gives_it_up(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE)
    async with front_of(tmp_path / "model.py") as (manager, gate, writer):
        loaded = manager.find("m", "1")
        await told(gate, writer, ("m", "1", 3, 1))
        assert loaded.elsewhere == {gate: (3, 1)}
        await told(gate, writer)
        assert loaded.elsewhere == {}


async def test_figures_of_a_copy_go_with_the_front_whatever_became_of_its_version(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE)
    async with front_of(tmp_path / "model.py") as (manager, gate, writer):
        loaded = manager.find("m", "1")
        await told(gate, writer, ("m", "1", 3, 1))
        manager.apply({})  # it leaves the table; its own gauges are read until it is closed
        await manager.settled()
        writer.close()
        await gate.closed
        assert loaded.elsewhere == {}
