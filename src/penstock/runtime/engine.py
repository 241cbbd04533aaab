"""The one door of the process that owns the models (`core.door.Door`)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import numpy as np

from penstock.core.door import ModelDescription, Statistics, VersionStatus
from penstock.core.errors import InvalidInput, NotFound, NotReady
from penstock.core.messages import NO_DEADLINE, Parameter, Request, Response
from penstock.core.servable import Signature
from penstock.runtime.fronts.wire import Table
from penstock.runtime.manager import Manager
from penstock.runtime.tracing import Tracing
from penstock.runtime.version import LoadedVersion
from penstock.telemetry.metrics import Metrics

# Of one request with more rows than a batch: enough to keep any pool of workers busy, few enough to leave room in the
# queue for other callers.
_PIECES_AT_ONCE = 16


class Repository(Protocol):
    """Explicit control over what is loaded; see `runtime.repository`."""

    async def load(
        self, model: str, config: Mapping[str, object] | None, files: Mapping[str, bytes] | None
    ) -> None: ...

    async def unload(self, model: str) -> None: ...

    def unloaded(self) -> list[str]:
        """Models that could be loaded and are not."""
        ...


class Engine:
    """Requests in, answers out. Built by `server`, used by listeners through protocols."""

    def __init__(
        self,
        manager: Manager,
        repository: Repository,
        tracing: Tracing,
        metrics: Metrics,
        set_logging: Callable[[Mapping[str, Parameter] | None], Mapping[str, Parameter]],
    ) -> None:
        self.stopping = False
        self._manager = manager
        self._repository = repository
        self._tracing = tracing
        self._metrics = metrics
        self._set_logging = set_logging
        self._loop = asyncio.get_running_loop()
        self._split: set[asyncio.Task[Response]] = set()

    # --- inference ---

    def submit(self, request: Request) -> asyncio.Future[Response]:
        """A future of the one answer; see `core.door.Door.submit`."""
        version = self._manager.find(request.model, request.version)
        key, rows = version.check(request)
        if request.deadline == NO_DEADLINE:
            request.deadline = (request.timings.received or time.monotonic()) + version.options.timeout_s
        if rows > version.batcher.limits.most_rows and version.batcher.joinable:
            return self._submit_in_pieces(version, request, rows)
        future = version.batcher.submit(request, key, rows)
        if request.outputs or self._tracing.active:
            return self._loop.create_task(self._finish(future, request))
        return future

    async def stream(self, request: Request) -> AsyncIterator[Response]:
        """The answers of a stream; see `core.door.Door.stream`."""
        version = self._manager.find(request.model, request.version)
        if not version.signature.streaming:
            yield await self.submit(request)
            return
        key, rows = version.check(request)
        if request.deadline == NO_DEADLINE:
            request.deadline = (request.timings.received or time.monotonic()) + version.options.timeout_s
        answers = version.batcher.stream(request, key, rows)
        try:
            async for response in answers:
                yield _asked_for(response, request)
        finally:
            await answers.aclose()  # type: ignore[attr-defined]  # a batcher's stream is an async generator

    async def _finish(self, future: asyncio.Future[Response], request: Request) -> Response:
        response = _asked_for(await future, request)
        if self._tracing.active:
            self._tracing.trace(request, response)
        return response

    def _submit_in_pieces(self, version: LoadedVersion, request: Request, rows: int) -> asyncio.Future[Response]:
        """More rows than one batch may hold: several batches, one answer, all under the request's own deadline."""
        task = self._loop.create_task(self._in_pieces(version, request, rows))
        self._split.add(task)
        task.add_done_callback(self._split.discard)
        return task

    async def _in_pieces(self, version: LoadedVersion, request: Request, rows: int) -> Response:
        most = version.batcher.limits.most_rows
        waiting: deque[asyncio.Future[Response]] = deque()
        answers: list[Response] = []
        try:
            for start in range(0, rows, most):
                if len(waiting) == _PIECES_AT_ONCE:
                    answers.append(await waiting.popleft())
                piece = Request(
                    request.model,
                    {name: array[start : start + most] for name, array in request.inputs.items()},
                    request.version,
                    request.id,
                    request.parameters,
                    (),
                    request.deadline,
                    request.priority,
                )
                piece.timings.received = request.timings.received
                key, piece_rows = version.check(piece)
                waiting.append(version.batcher.submit(piece, key, piece_rows))
            while waiting:
                answers.append(await waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
        last = answers[-1]
        last.outputs = {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in last.outputs}
        request.timings = last.timings
        return _asked_for(last, request)

    # --- what is here ---

    def signature(self, model: str, version: str = "") -> Signature:
        """See `core.door.Door.signature`."""
        return self._manager.find(model, version).signature

    def live(self) -> bool:
        """Always, while the loop turns."""
        return True

    def ready(self) -> bool:
        """Whether every model answers and the server is not stopping."""
        return not self.stopping and self._manager.all_ready()

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether this version answers. Raises: NotFound."""
        try:
            self._manager.find(model, version)
        except NotReady:
            return False
        return not self.stopping

    def models(self) -> list[str]:
        """Names of models with a ready version, sorted."""
        return self._manager.names()

    def describe(self, model: str, version: str = "") -> ModelDescription:
        """See `core.door.Door.describe`."""
        return self._manager.find(model, version).describe(
            self._manager.ready_versions(model), self._manager.labels(model)
        )

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """See `core.door.Door.statistics`."""
        return [loaded.statistics() for loaded in self._manager.loaded(model, version)]

    async def index(self) -> list[VersionStatus]:
        """Every version known, and the models that could be loaded."""
        known = self._manager.index()
        names = {status.name for status in known}
        return known + [VersionStatus(name, "", "") for name in self._repository.unloaded() if name not in names]

    async def metrics(self) -> bytes:
        """The Prometheus text. Written in a thread: with hundreds of models it takes a tenth of a second."""
        from penstock.telemetry import exposition  # the formatter is loaded by the first scrape, not by every start

        return await asyncio.to_thread(exposition.text, self._metrics.snapshot())

    def table(self) -> Table:
        """Everything that another front's lookups need."""
        places: dict[str, dict[str, int]] = {}
        descriptions: list[ModelDescription] = []
        for (name, text), loaded in self._manager.table().items():
            number = str(loaded.number)
            own = places.setdefault(name, {})
            if number not in own:
                own[number] = len(descriptions)
                descriptions.append(self.describe(name, number))
            own[text] = own[number]
        unready = self._manager.failures() if self._manager.started else {}
        return Table(self.ready(), self.stopping, descriptions, places, unready)

    # --- control ---

    async def load(
        self, model: str, config: Mapping[str, object] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """See `core.door.Door.load`."""
        await self._repository.load(model, config, files)

    async def unload(self, model: str) -> None:
        """See `core.door.Door.unload`."""
        await self._repository.unload(model)

    async def trace_settings(self, model: str = "", update: Mapping[str, object] | None = None) -> Mapping[str, object]:
        """The settings in force, after the update. Raises: NotFound, InvalidInput."""
        if model and model not in self._manager.known():
            raise NotFound(f"no model '{model}'")
        return self._tracing.settings(model, update)

    async def log_settings(self, update: Mapping[str, Parameter] | None = None) -> Mapping[str, Parameter]:
        """The settings in force, after the update. Raises: InvalidInput."""
        return self._set_logging(update)


def _asked_for(response: Response, request: Request) -> Response:
    if request.outputs:
        try:
            response.outputs = {name: response.outputs[name] for name in request.outputs}
        except KeyError as error:
            raise InvalidInput(f"no output {error}; the model gave {', '.join(map(repr, response.outputs))}") from None
    return response
