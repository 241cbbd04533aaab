"""The one door into a replica. Protocols and listeners see this and nothing behind it.

`runtime.engine.Engine` is the door of the process that owns the models; `runtime.fronts.remote.RemoteEngine` is the
same door in an extra front process. All methods are called on the event loop's thread and none blocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from penstock.core.messages import Parameter, Request, Response
from penstock.core.servable import Signature

if TYPE_CHECKING:  # the client reads statistics from here and needs none of these
    import asyncio

    from penstock.core.batches import Batches
    from penstock.core.language import LanguageModel
    from penstock.core.responses import Responses


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A ready model as metadata shows it. `versions` are the ready ones, lowest first."""

    name: str
    version: int  # the version this description is of
    versions: tuple[int, ...]
    labels: Mapping[str, int]
    signature: Signature
    config: Mapping[str, object]  # effective model options, JSON-able
    executor: str  # "inline" or "process"
    path: str
    sha256: str
    serial: int = 0  # of one load of a version; never used again in the life of a server


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of the repository index. `state` is LOADING, READY, UNLOADING, UNAVAILABLE or "" (never loaded)."""

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(slots=True)
class Tally:
    """A count and the sum of durations in nanoseconds, as V2 statistics want them."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class BatchTally:
    """Executions of one batch size."""

    compute_input: Tally = field(default_factory=Tally)
    compute_infer: Tally = field(default_factory=Tally)
    compute_output: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class Statistics:
    """Cumulative figures of one model version since it was loaded, in the V2 statistics extension's terms."""

    name: str
    version: str
    last_inference_ms: int = 0  # wall clock, milliseconds since the epoch
    inference_count: int = 0  # rows
    execution_count: int = 0  # batches
    success: Tally = field(default_factory=Tally)
    fail: Tally = field(default_factory=Tally)
    queue: Tally = field(default_factory=Tally)
    compute_input: Tally = field(default_factory=Tally)
    compute_infer: Tally = field(default_factory=Tally)
    compute_output: Tally = field(default_factory=Tally)
    batches: dict[int, BatchTally] = field(default_factory=dict)  # by rows
    in_flight: int = 0
    queued: int = 0
    executor: str = ""
    workers: list[dict[str, object]] = field(default_factory=list)  # pid, device, state, batches, restarts, rss_bytes


class Door(Protocol):
    """What a protocol may ask. `version` is "" for the default, digits for a number, anything else for a label."""

    def signature(self, model: str, version: str = "") -> Signature:
        """The signature of a ready version.

        Raises:
            NotFound: no such model, version or label.
            NotReady: it is known but cannot answer now.
        """
        ...

    def submit(self, request: Request) -> asyncio.Future[Response]:
        """A future of the one answer. Cancelling it takes the request out of the queue.

        Raises (at once or through the future): every type of `core.errors`.
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[Response]:
        """The answers of a streaming model, in order; iteration is the back-pressure, closing it stops the model.
        A model without streams yields its one answer."""
        ...

    async def language(self, model: str, version: str = "") -> LanguageModel:
        """A ready language model. Raises: NotFound, NotReady; Unsupported when it is a model of another kind."""
        ...

    def batches(self) -> Batches:
        """The files and batches of this server. Raises: Unsupported when it keeps none."""
        ...

    def responses(self) -> Responses:
        """The answers that this server keeps. Raises: Unsupported when it keeps none."""
        ...

    def live(self) -> bool: ...

    def ready(self) -> bool:
        """Whether every required model has answered a real warm-up and computes now, and the server is not stopping."""
        ...

    def model_ready(self, model: str, version: str = "") -> bool:
        """Raises: NotFound."""
        ...

    def next_change(self) -> asyncio.Future[None]:
        """Done at the next change of what `ready` and `model_ready` say (perhaps without one). Shared: wait for it
        without cancelling it."""
        ...

    def models(self) -> list[str]:
        """Names of models with a ready version, sorted."""
        ...

    def describe(self, model: str, version: str = "") -> ModelDescription:
        """Raises: NotFound, NotReady."""
        ...

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """Of all models when `model` is "". Raises: NotFound."""
        ...

    async def index(self) -> list[VersionStatus]: ...

    async def load(
        self, model: str, config: Mapping[str, object] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Returns once the model answers. `config` overrides model options, `files` are paths relative to the model.

        Raises: NotFound, LoadError, InvalidInput; Unsupported when the server was not started for explicit control.
        """
        ...

    async def unload(self, model: str) -> None:
        """Returns at once; requests in flight are answered first. Raises: NotFound, Unsupported."""
        ...

    async def trace_settings(
        self, model: str = "", update: Mapping[str, object] | None = None
    ) -> Mapping[str, object]: ...

    async def log_settings(self, update: Mapping[str, Parameter] | None = None) -> Mapping[str, Parameter]: ...

    async def metrics(self) -> bytes:
        """The Prometheus text of all processes of this server."""
        ...
