"""The contract between the runtime and a loaded model, and what a model tells about itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from penstock.core.declare import Batch
from penstock.core.messages import Parameter
from penstock.core.tensor import Array, TensorSpec

Tensors = Mapping[str, Array]

PIECE: Final = "piece"
"""The one output of a servable that pours."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, read from its file or declared; published as its metadata and checked."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str  # as metadata shows it, e.g. "onnxruntime_onnx", "python"
    batchable: bool  # axis 0 of every input and output is the batch; requests may be joined along it
    streaming: bool = False  # has `answer`, and a request may get any number of responses
    inline_safe: bool = False  # library code only: releases the GIL or is short, never runs user code
    concurrency: int = 1  # batches one worker may hold at once; above 1 only for asyncio models
    metadata: Mapping[str, str] = field(default_factory=dict)  # framework versions, producer, …
    batch: Batch | None = None  # declared in the model's code; the user's options come before it


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What an adapter is told when it loads. Everything is decided by the runtime; adapters decide nothing global."""

    name: str
    version: int
    device: str = "cpu"  # "cpu" or "cuda:N"
    device_fraction: float = 1.0  # share of the device's memory this worker may plan with
    threads: int = 1  # compute threads at this worker's own priority
    borrowed_threads: int = 0  # more threads, for batches that run while every other worker is idle (`Borrower`)
    trusted: bool = False  # the user named this artifact with --trust: pickled files may be opened
    options: Mapping[str, Parameter] = field(default_factory=dict)  # the adapter's own, from [models.NAME.options]
    inputs: tuple[TensorSpec, ...] = ()  # declared by the user; overrides what the file says, or fills what it cannot
    outputs: tuple[TensorSpec, ...] = ()


class Servable(Protocol):
    """A loaded model version, living in one worker (or inline in the front).

    An implementer owes:
    1. `signature` is final when `load` returns.
    2. `predict` takes every declared, non-optional input, checked against the signature, and returns every declared
       output. Inputs are read-only and die when it returns: copy what must live longer. Outputs may be views of its
       own memory until the next call. With `signature.batchable`, output axis 0 equals input axis 0 and row i of the
       output depends on row i of the inputs only.
    3. `predict` may return an awaitable; then it is awaited on the worker's own loop.
    4. An exception fails the batch, not the worker. `InvalidInput` blames the caller; anything else the model.
    5. `close` frees what the process would not; it is called once, after the last call ended.
    6. With `signature.inline_safe`, outputs are fresh arrays or the inputs themselves, and live on after later calls.
    """

    signature: Signature

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors | Awaitable[Tensors]: ...

    def close(self) -> None: ...


@runtime_checkable
class StreamingServable(Protocol):
    """A Servable that can also answer one request with a stream. The iterator is closed when the client leaves."""

    def answer(
        self, inputs: Tensors, parameters: Mapping[str, Parameter]
    ) -> Iterator[Tensors] | AsyncIterator[Tensors]: ...


class Outlet(Protocol):
    """Where the pieces of one stream go. All that is put in one turn of the loop, by all streams of a worker, crosses
    as one message. `on_room` is called when there may be room again."""

    on_room: Callable[[], None]

    def room(self) -> bool:
        """Whether the reader keeps up. What is put nevertheless is kept for it: join pieces instead."""
        ...

    def put(self, piece: bytes, count: int) -> None:
        """Sends a piece. `count` is what it counts for, 0 or more; who stands between may read it."""
        ...


@runtime_checkable
class PouringServable(Protocol):
    """A Servable whose streams have many small pieces: it puts bytes into an outlet instead of yielding tensors. Its
    reader gets each as the tensor `PIECE`, UINT8. Of asyncio models only; cancelled when the client leaves."""

    def pour(
        self, inputs: Tensors, parameters: Mapping[str, Parameter], outlet: Outlet
    ) -> Coroutine[object, object, None]:
        """Returns when the last piece was put."""
        ...


@runtime_checkable
class Borrower(Protocol):
    """A Servable that can change its number of compute threads between two calls of `predict`."""

    def borrow(self, on: bool) -> None:
        """From the next call on: compute with `threads + borrowed_threads` threads, or with `threads` again."""
        ...


class Adapter(Protocol):
    """One framework. A module in `runtime/adapters` named as its plug; see that folder's `__init__`.

    An implementer owes:
    1. `recognises` looks at names and at most a few bytes, imports nothing heavy, and never runs the artifact.
    2. `load` imports the framework inside itself, raises `LoadError` with what to install when it is missing, and
       opens pickled files only when `context.trusted`.
    3. The same artifact and context give the same signature.
    """

    name: str
    inline_safe: bool  # may the front process hold it? (library code that runs no user code)
    preload: tuple[str, ...]  # modules the front may import early when this adapter may run inline

    def recognises(self, path: Path) -> bool: ...

    def load(self, path: Path, context: LoadContext) -> Servable: ...
