"""The engine's end of a link to one extra front: requests come in, answers go out, the table is kept fresh."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec

from penstock.core.errors import Internal, PenstockError, Unsupported
from penstock.core.messages import Request, Response, Timings
from penstock.core.responses import Wish
from penstock.runtime.engine import Engine
from penstock.runtime.fronts import remote_batches, remote_responses, wire
from penstock.runtime.version import LoadedVersion
from penstock.runtime.workers import frame

log = logging.getLogger("penstock.fronts")

# A front that does not answer in this time is busy or stuck; its last figures will do.
_TELL_S = 0.25

_METHODS = frozenset({"statistics", "index", "metrics", "load", "unload", "trace_settings", "log_settings"})
_KEPT = {**remote_batches.RESULTS, **remote_responses.RESULTS}


class Gate(wire.Link[wire.ToEngine]):
    """One front's requests to the engine. When the front is gone, all it waited for is cancelled."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(wire.ToEngine)
        self.figures = wire.Figures([0] * 6, {}, 0)
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._asked = 0
        self._told: dict[int, asyncio.Future[None]] = {}
        self._futures: dict[int, asyncio.Future[Response]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wanted: dict[int, asyncio.Semaphore] = {}
        self._copied: list[LoadedVersion] = []  # of which the front has a copy, as it said last

    def on_message(self, message: wire.ToEngine, payload: bytes) -> None:
        if isinstance(message, wire.Infer):
            try:
                self._infer(message, payload)
            except Exception as error:  # somebody waits for an answer, whatever went wrong
                self._fail(message.id, error)
        elif isinstance(message, wire.Cancel):
            if (future := self._futures.get(message.id)) is not None:
                future.cancel()
            if (task := self._tasks.get(message.id)) is not None:
                task.cancel()
        elif isinstance(message, wire.Take):
            if (wanted := self._wanted.get(message.id)) is not None:
                wanted.release()
        elif isinstance(message, wire.Call):
            self._spawn(message.id, self._call(message))
        elif isinstance(message, wire.Observed):
            if (loaded := self._engine.loaded(message.model, message.version)) is not None:
                loaded.metrics.absorb(message.requests, message.batches, message.failures)
        elif isinstance(message, wire.Observation):
            self._engine.note_spoken(message.spoken)
        elif isinstance(message, wire.Figures):
            self.figures = message
            self._count_copies(message.copies)
        elif isinstance(message, wire.Told):
            if (told := self._told.pop(message.id, None)) is not None and not told.done():
                told.set_result(None)
        elif not self.started.done():
            self.started.set_result(None)

    async def tell(self) -> None:
        """Returns when the front has sent all that its copies observed, or did not within a moment."""
        self._asked += 1
        asked = self._asked
        told = self._told[asked] = asyncio.get_running_loop().create_future()
        self.send(wire.Tell(asked))
        try:
            await asyncio.wait({told, self.closed}, timeout=_TELL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._told.pop(asked, None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in list(self._futures.values()):
            future.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        self._count_copies([])
        super().connection_lost(exc)

    def _count_copies(self, copies: list[tuple[str, str, int, int]]) -> None:
        """What the front's copies hold counts at their versions; what it no longer has counts nowhere."""
        for loaded in self._copied:
            loaded.elsewhere.pop(self, None)
        self._copied.clear()
        for model, version, in_flight, queued in copies:
            if (loaded_now := self._engine.loaded(model, version)) is not None:
                loaded_now.elsewhere[self] = (in_flight, queued)
                self._copied.append(loaded_now)

    def _infer(self, message: wire.Infer, payload: bytes) -> None:
        request = Request(
            message.model,
            frame.unpack(message.tensors, payload, owned=False),
            message.version,
            message.request_id,
            message.parameters,
            message.outputs,
            message.deadline,
            message.priority,
            Timings(received=message.received),
            message.trace,
            message.caller,
            message.internal,
        )
        if message.stream:
            self._wanted[message.id] = asyncio.Semaphore(0)
            self._spawn(message.id, self._stream(message.id, request))
            return
        future = self._engine.submit(request)
        self._futures[message.id] = future
        future.add_done_callback(partial(self._answered, message.id))

    def _answered(self, id: int, future: asyncio.Future[Response]) -> None:
        del self._futures[id]
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self._fail(id, error)
        else:
            try:
                self._answer(id, future.result())
            except PenstockError as problem:
                self._fail(id, problem)

    def _answer(self, id: int, response: Response) -> None:
        """Raises: InvalidInput, TooLarge when it cannot be sent."""
        payload = wire.packed(response.outputs)
        self.send(
            wire.Answer(
                id, response.model, response.version, response.id, wire.plain(response.parameters), payload.heads,
                response.timings, response.traces,
            ),
            payload,
        )  # fmt: skip

    async def _stream(self, id: int, request: Request) -> None:
        wanted = self._wanted[id]
        try:
            await wanted.acquire()
            answers = self._engine.stream(request)
            try:
                async for response in answers:
                    self._answer(id, response)
                    await wanted.acquire()
            finally:
                await answers.aclose()  # type: ignore[attr-defined]  # the engine's stream is an async generator
            self.send(wire.End(id))
        except PenstockError as error:
            self._fail(id, error)

    async def _call(self, message: wire.Call) -> None:
        try:
            value = await self._method(message.method)(*message.arguments)
            self.send(wire.Reply(message.id, msgspec.Raw(msgspec.msgpack.encode(value))))
        except PenstockError as error:
            self._fail(message.id, error)

    def _method(self, method: str) -> Any:
        """What a front may call. Raises: Unsupported."""
        if method in _METHODS:
            return getattr(self._engine, method)
        if method not in _KEPT:
            raise Unsupported(f"no method {method!r}")
        owner, _, name = method.partition(".")
        if method == "responses.begin":  # the wish comes as what it is made of
            return lambda caller, wish: self._engine.responses().begin(caller, msgspec.convert(wish, Wish))
        return getattr(self._engine.batches() if owner == "batches" else self._engine.responses(), name)

    def _fail(self, id: int, error: BaseException) -> None:
        if not isinstance(error, PenstockError):
            log.error("request_failed", exc_info=error)
            error = Internal("internal error")
        self.send(wire.Problem(id, type(error).__name__, error.message, error.retry_after_s))

    def _spawn(self, id: int, work: Any) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._fail(id, error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks[id] = task

        def ended(_: asyncio.Task[None]) -> None:
            # Not in the work itself: a task that is cancelled before it began does nothing of it.
            self._tasks.pop(id, None)
            self._wanted.pop(id, None)
            work.close()

        task.add_done_callback(ended)
