"""The door inside an extra front process: lookups from the engine's last table, everything else over the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from penstock.core.batches import Batches
from penstock.core.door import ModelDescription, Statistics, VersionStatus
from penstock.core.errors import Internal, NotFound, NotReady, PenstockError, WorkerLost, rebuild
from penstock.core.language import LanguageModel
from penstock.core.messages import Parameter, Request, Response
from penstock.core.responses import Responses
from penstock.core.servable import Signature
from penstock.runtime.fronts import remote_batches, remote_responses, wire
from penstock.runtime.fronts.copies import Copies, Copy
from penstock.runtime.fronts.remote_batches import RemoteBatches
from penstock.runtime.fronts.remote_responses import RemoteResponses
from penstock.runtime.inference import Inference
from penstock.runtime.language.session import Sessions
from penstock.runtime.workers import frame

_RESULTS: dict[str, Any] = {
    "statistics": list[Statistics],
    "index": list[VersionStatus],
    "metrics": bytes,
    "load": None,
    "unload": None,
    "trace_settings": dict[str, Any],
    "log_settings": dict[str, Any],
    **remote_batches.RESULTS,
    **remote_responses.RESULTS,
}


class RemoteEngine(wire.Link[wire.ToFront]):
    """`core.door.Door` over a link. `on_setup` and `on_drain` are the process's own business."""

    def __init__(self, on_setup: Callable[[wire.Setup], None], on_drain: Callable[[float], None]) -> None:
        super().__init__(wire.ToFront)
        self.on_stopping: Callable[[], None] = _nothing  # may be called several times
        self._on_setup = on_setup
        self._on_drain = on_drain
        self._loop = asyncio.get_running_loop()
        self._table = wire.Table(False, False, [], [], [], {}, {})
        self.copies = Copies(self.send)
        self._inference = Inference()
        self._sessions = Sessions(self, lambda spoken: self.send(wire.Observation(spoken)))
        self._batches = RemoteBatches(self._call)
        self._responses = RemoteResponses(self._call)
        self._next_id = 0
        self._change: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, asyncio.Queue[Response | PenstockError | None]] = {}

    # --- the link ---

    def on_message(self, message: wire.ToFront, payload: bytes) -> None:
        if isinstance(message, wire.Answer):
            response = Response(
                message.model,
                message.version,
                frame.unpack(message.tensors, payload, owned=False),
                message.request_id,
                message.parameters,
                message.timings,
                message.traces,
            )
            if (queue := self._streams.get(message.id)) is not None:
                queue.put_nowait(response)
            else:
                self._settle(message.id, response)
        elif isinstance(message, wire.Problem):
            error = rebuild(message.kind, message.message, message.retry_after_s)
            if (queue := self._streams.get(message.id)) is not None:
                queue.put_nowait(error)
            else:
                self._settle(message.id, error)
        elif isinstance(message, wire.Reply):
            self._settle(message.id, message.value)
        elif isinstance(message, wire.End):
            if (queue := self._streams.get(message.id)) is not None:
                queue.put_nowait(None)
        elif isinstance(message, wire.Table):
            self._table = message
            self.copies.follow(message)
            self._sessions.prune()
            self._note_change()
            if message.stopping:
                self.on_stopping()
        elif isinstance(message, wire.Tell):
            self.copies.flush()
            self.send(wire.Told(message.id))
        elif isinstance(message, wire.Setup):
            self._on_setup(message)
        else:
            self._on_drain(message.grace_s)

    def connection_lost(self, exc: Exception | None) -> None:
        lost = WorkerLost("the process that holds the models ended")
        for id in list(self._waiting):
            self._settle(id, lost)
        for queue in self._streams.values():
            queue.put_nowait(lost)
        super().connection_lost(exc)
        self._sessions.close()
        self._note_change()

    def _settle(self, id: int, result: object) -> None:
        future = self._waiting.pop(id, None)
        if future is None or future.done():
            return
        if isinstance(result, PenstockError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _new(self) -> tuple[int, asyncio.Future[Any]]:
        if self.closed.done():
            raise WorkerLost("the process that holds the models ended")
        self._next_id += 1
        future = self._waiting[self._next_id] = self._loop.create_future()
        return self._next_id, future

    # --- inference ---

    def submit(self, request: Request) -> asyncio.Future[Response]:
        """See `core.door.Door.submit`."""
        copy = self._copy(request)
        if copy is not None:
            return self._inference.submit(copy, request)
        payload = wire.packed(request.inputs)
        id, future = self._new()
        self._ask(id, _infer(id, request, payload, stream=False), payload)
        future.add_done_callback(lambda future: self._gone(id) if future.cancelled() else None)
        return future

    async def stream(self, request: Request) -> AsyncIterator[Response]:
        """See `core.door.Door.stream`."""
        self._place(request.model, request.version)
        payload = wire.packed(request.inputs)
        id, _ = self._new()
        del self._waiting[id]
        queue = self._streams[id] = asyncio.Queue()
        ended = False
        try:
            self.send(_infer(id, request, payload, stream=True), payload)
            while True:
                self.send(wire.Take(id))
                item = await queue.get()
                if not isinstance(item, Response):
                    ended = True
                    if item is not None:
                        raise item
                    return
                yield item
        finally:
            del self._streams[id]
            if not ended:
                self.send(wire.Cancel(id))

    def _ask(self, id: int, message: wire.ToEngine, payload: frame.Payload | None = None) -> None:
        """Sends what an answer is awaited of. Raises: InvalidInput, TooLarge; then none is awaited."""
        try:
            self.send(message, payload)
        except PenstockError:
            del self._waiting[id]
            raise

    def _gone(self, id: int) -> None:
        self._waiting.pop(id, None)
        self.send(wire.Cancel(id))

    # --- what is here ---

    def _copy(self, request: Request) -> Copy | None:
        """The version in this process that answers the request, if there is one. Raises: NotFound, NotReady."""
        wished = self._table.copies[self._place(request.model, request.version)]
        return None if wished is None else self.copies.get(wished.serial)

    def _find(self, model: str, version: str) -> ModelDescription:
        return self._table.descriptions[self._place(model, version)]

    def _place(self, model: str, version: str) -> int:
        places = self._table.places.get(model)
        if places is None:
            if (reason := self._table.unready.get(model)) is not None:
                raise NotReady(reason, retry_after_s=1)
            if not self._table.started:
                raise NotReady("the server is starting", retry_after_s=1)
            raise NotFound(f"no model '{model}'; ready models: {', '.join(self.models()[:10]) or 'none'}")
        place = places.get(version)
        if place is None:
            raise NotFound(
                f"model '{model}' has no ready version or label '{version}'; there are "
                f"{', '.join(text for text in places if text)}"
            )
        return place

    def signature(self, model: str, version: str = "") -> Signature:
        """See `core.door.Door.signature`."""
        return self._find(model, version).signature

    async def language(self, model: str, version: str = "") -> LanguageModel:
        """See `core.door.Door.language`."""
        return await self._sessions.open(model, version)

    def batches(self) -> Batches:
        """See `core.door.Door.batches`."""
        return self._batches

    def responses(self) -> Responses:
        """See `core.door.Door.responses`."""
        return self._responses

    def live(self) -> bool:
        """While the engine's process lives."""
        return not self.closed.done()

    def ready(self) -> bool:
        """What the engine said last."""
        return self._table.ready and self.live()

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether this version answers. Raises: NotFound."""
        try:
            place = self._place(model, version)
        except NotReady:
            return False
        return self._table.answering[place] and not self._table.stopping

    def next_change(self) -> asyncio.Future[None]:
        """See `core.door.Door.next_change`."""
        return self._change

    def _note_change(self) -> None:
        change, self._change = self._change, self._loop.create_future()
        if not change.done():
            change.set_result(None)

    def models(self) -> list[str]:
        """Names of models with a ready version, sorted."""
        return sorted(self._table.places)

    def describe(self, model: str, version: str = "") -> ModelDescription:
        """See `core.door.Door.describe`."""
        return self._find(model, version)

    # --- calls ---

    async def _call(self, method: str, *arguments: object) -> Any:
        id, future = self._new()
        self._ask(id, wire.Call(id, method, list(arguments)))
        value = await future
        if _RESULTS[method] is None:
            return None
        try:
            return msgspec.msgpack.decode(value, type=_RESULTS[method])
        except msgspec.DecodeError as error:
            raise Internal(f"the answer of the process that holds the models cannot be read: {error}") from None

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """See `core.door.Door.statistics`."""
        return await self._call("statistics", model, version)  # type: ignore[no-any-return]  # decoded to its type

    async def index(self) -> list[VersionStatus]:
        """See `core.door.Door.index`."""
        return await self._call("index")  # type: ignore[no-any-return]  # decoded to its type

    async def metrics(self) -> bytes:
        """The Prometheus text of all processes."""
        return await self._call("metrics")  # type: ignore[no-any-return]  # decoded to its type

    async def load(
        self, model: str, config: Mapping[str, object] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """See `core.door.Door.load`."""
        await self._call("load", model, config, files)

    async def unload(self, model: str) -> None:
        """See `core.door.Door.unload`."""
        await self._call("unload", model)

    async def trace_settings(self, model: str = "", update: Mapping[str, object] | None = None) -> Mapping[str, object]:
        """See `core.door.Door.trace_settings`."""
        return await self._call("trace_settings", model, update)  # type: ignore[no-any-return]  # decoded to its type

    async def log_settings(self, update: Mapping[str, Parameter] | None = None) -> Mapping[str, Parameter]:
        """See `core.door.Door.log_settings`."""
        return await self._call("log_settings", update)  # type: ignore[no-any-return]  # decoded to its type


def _infer(id: int, request: Request, payload: frame.Payload, *, stream: bool) -> wire.Infer:
    return wire.Infer(
        id, request.model, request.version, request.id, wire.plain(request.parameters), request.outputs,
        request.deadline, request.priority, request.timings.received, payload.heads, stream, request.trace,
        request.internal, request.caller,
    )  # fmt: skip


def _nothing() -> None:
    return
