"""The one door of the process that owns the models (`core.door.Door`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

from penstock.core.batches import Batches
from penstock.core.door import ModelDescription, Statistics, VersionStatus
from penstock.core.errors import NotFound, NotReady, Unsupported
from penstock.core.language import LanguageModel
from penstock.core.messages import Parameter, Request, Response
from penstock.core.responses import Responses
from penstock.core.servable import Signature
from penstock.runtime.fronts.wire import Table
from penstock.runtime.inference import Inference
from penstock.runtime.keys import KeyLimits
from penstock.runtime.language.figures import Spoken
from penstock.runtime.language.gate import SERIAL, Gates
from penstock.runtime.language.kept import Kept
from penstock.runtime.language.session import Sessions
from penstock.runtime.manager import Manager
from penstock.runtime.tracing import Tracing
from penstock.runtime.version import InlineCopy, LoadedVersion
from penstock.telemetry.metrics import Metrics


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
        key_limits: Mapping[str, KeyLimits] | None = None,
    ) -> None:
        self.stopping = False
        self.close_by = 0.0  # monotonic; set when the server stops: what still computes then is cut
        self.before_reading: Callable[[], Awaitable[None]] = _nothing  # brings figures in that other processes hold
        self.on_tracing: Callable[[], None] = lambda: None  # called when tracing is switched on or off
        self.kept: Kept | None = None  # files, batches and answers; whoever sets it closes it
        self._manager = manager
        self._repository = repository
        self._tracing = tracing
        self._metrics = metrics
        self._set_logging = set_logging
        self._inference = Inference()
        self._gates = Gates(key_limits or {})
        self._sessions = Sessions(self, self.note_spoken)
        self._change: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- inference ---

    def submit(self, request: Request) -> asyncio.Future[Response]:
        """A future of the one answer; see `core.door.Door.submit`."""
        version = self._find(request)
        if request.internal:
            return self._gates.submit(request, lambda: self._inference.submit(version, request))
        return self._inference.submit(version, request)

    def stream(self, request: Request) -> AsyncIterator[Response]:
        """The answers of a stream; see `core.door.Door.stream`."""
        return self._stream(request)

    async def _stream(self, request: Request) -> AsyncIterator[Response]:
        version = self._find(request)
        answers = (
            self._gates.stream(version, request, lambda: self._inference.stream(version, request))
            if request.internal
            else self._inference.stream(version, request)
        )
        try:
            async for response in answers:
                yield response
        finally:
            await answers.aclose()  # type: ignore[attr-defined]  # it is an async generator

    def _find(self, request: Request) -> LoadedVersion:
        """The version that answers. Raises: NotFound; NotReady also when it is not the load that was asked, because
        other files may mean other tokens."""
        version = self._manager.find(request.model, request.version)
        if request.internal and request.parameters.get(SERIAL, version.serial) != version.serial:
            raise NotReady(
                f"model '{request.model}' version {request.version} was loaded anew while this request was read: send "
                "it again",
                retry_after_s=1,
            )
        return version

    async def language(self, model: str, version: str = "") -> LanguageModel:
        """See `core.door.Door.language`."""
        return await self._sessions.open(model, version)

    def batches(self) -> Batches:
        """See `core.door.Door.batches`."""
        if self.kept is None:
            raise Unsupported("this server keeps no files and no batches")
        return self.kept.batches

    def responses(self) -> Responses:
        """See `core.door.Door.responses`."""
        if self.kept is None:
            raise Unsupported("this server keeps no answers")
        return self.kept.responses

    def close(self) -> None:
        """To be called when no request is left. Models are the manager's to close."""
        self._sessions.close()

    def note_spoken(self, spoken: Spoken) -> None:
        """Takes what a request to a language model came to, in this process or another front."""
        if (loaded := self.loaded(spoken.model, spoken.version)) is not None:
            loaded.metrics.record_spoken(spoken)

    # --- what is here ---

    @property
    def started(self) -> bool:
        """Whether the first load is over."""
        return self._manager.started

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
            loaded = self._manager.find(model, version)
        except NotReady:
            return False
        return loaded.answers and not self.stopping

    def next_change(self) -> asyncio.Future[None]:
        """See `core.door.Door.next_change`."""
        return self._change

    def note_change(self) -> None:
        """To be called when a version came or went, or the server begins to stop."""
        self._tracing.keep(self._manager.known())
        self._sessions.prune()
        self._use_tracing()
        change, self._change = self._change, asyncio.get_running_loop().create_future()
        if not change.done():
            change.set_result(None)

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
        await self.before_reading()
        return [loaded.statistics() for loaded in self._manager.loaded(model, version)]

    async def index(self) -> list[VersionStatus]:
        """Every version known, and the models that could be loaded."""
        known = self._manager.index()
        names = {status.name for status in known}
        return known + [VersionStatus(name, "", "") for name in self._repository.unloaded() if name not in names]

    async def metrics(self) -> bytes:
        """The Prometheus text. Written in a thread: with hundreds of models it takes a tenth of a second."""
        from penstock.telemetry import exposition  # the formatter is loaded by the first scrape, not by every start

        await self.before_reading()
        snapshot = self._metrics.snapshot()
        for model in snapshot.models:
            if model.language is not None and (loaded := self.loaded(model.name, model.version)) is not None:
                model.waiting = self._gates.waiting(loaded)
        return await asyncio.to_thread(exposition.text, snapshot)

    def table(self) -> Table:
        """Everything that another front's lookups need."""
        places: dict[str, dict[str, int]] = {}
        descriptions: list[ModelDescription] = []
        copies: list[InlineCopy | None] = []
        answering: list[bool] = []
        for (name, text), loaded in self._manager.table().items():
            number = str(loaded.number)
            own = places.setdefault(name, {})
            if number not in own:
                own[number] = len(descriptions)
                descriptions.append(self.describe(name, number))
                copies.append(None if self._tracing.active else loaded.copy)
                answering.append(loaded.answers)
            own[text] = own[number]
        unready = self._manager.failures() if self._manager.started else {}
        return Table(self.ready(), self.stopping, descriptions, copies, answering, places, unready, self.started)

    def loaded(self, model: str, version: str) -> LoadedVersion | None:
        """The version that answers for a name now, if there is one."""
        return self._manager.table().get((model, version))

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
        settings = self._tracing.settings(model, update)
        self._use_tracing()
        self.on_tracing()
        return settings

    def _use_tracing(self) -> None:
        self._inference.trace = self._tracing.trace if self._tracing.active else None

    async def log_settings(self, update: Mapping[str, Parameter] | None = None) -> Mapping[str, Parameter]:
        """The settings in force, after the update. Raises: InvalidInput."""
        return self._set_logging(update)


async def _nothing() -> None:
    return
