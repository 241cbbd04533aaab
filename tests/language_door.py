"""The door of a real engine with a real worker, without listeners: for tests of language models."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.core.door import Door
    from penstock.core.language import Ask, Event
    from penstock.runtime.engine import Engine


@contextlib.asynccontextmanager
async def engine_of(path: Path, name: str = "m", *, limits: Any = None, **options: Any) -> AsyncIterator[Engine]:
    """An engine that serves the model at `path`. `options` are fields of ModelOptions, `limits` those of callers."""
    from penstock.runtime.engine import Engine
    from penstock.runtime.manager import Manager
    from penstock.runtime.options import ModelOptions, ServerOptions
    from penstock.runtime.repository import ModelRepository
    from penstock.runtime.sources.memory import MemorySource
    from penstock.runtime.tracing import Tracing
    from penstock.telemetry.metrics import Metrics

    metrics = Metrics()
    manager = Manager(metrics, 2)
    engine = Engine(manager, ModelRepository([], manager, ServerOptions()), Tracing(), metrics, lambda _: {}, limits)
    manager.on_change = engine.note_change
    manager.apply(MemorySource([ModelOptions(name=name, path=str(path), **options)]).poll())
    try:
        await manager.settled()
        manager.started = True
        yield engine
    finally:
        await manager.close(0)
        engine.close()


@contextlib.asynccontextmanager
async def front_of(engine: Engine) -> AsyncIterator[Door]:
    """The same models as an extra front sees them: over a link."""
    from penstock.runtime.fronts.gate import Gate
    from penstock.runtime.fronts.remote import RemoteEngine

    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    _, gate = await loop.create_unix_connection(lambda: Gate(engine), sock=ours)
    _, remote = await loop.create_unix_connection(lambda: RemoteEngine(lambda _: None, lambda _: None), sock=theirs)
    change = remote.next_change()
    gate.send(engine.table())
    await asyncio.wait_for(change, 10)
    try:
        yield remote
    finally:
        remote.close()
        gate.close()
        await asyncio.wait_for(gate.closed, 10)


async def answer(door: Door, ask: Ask, name: str = "m") -> list[Event]:
    """All events of one request."""
    model = await door.language(name)
    return [event async for event in model.ask(ask)]


def text_of(events: list[Event], choice: int = 0) -> str:
    """The visible text of one choice."""
    from penstock.core.language import Text

    return "".join(event.text for event in events if isinstance(event, Text) and event.choice == choice)
