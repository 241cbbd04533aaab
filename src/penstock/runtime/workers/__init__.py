"""Where batches run. An Executor is one place: a worker process, or the front's own loop (`inline`).

Theory of operation. The batcher owns the queue and gives a batch to an executor only when that executor has a free
slot (pull). `run` never blocks and never raises for a fault of the model or the worker; it calls `done` exactly once,
later, on the loop's thread, with the result or the error, also for a batch that was abandoned. The tensors of the parts
are not read again once `run` has returned (a worker process copies them into shared memory inside `run`: the only copy
on the way in); the result's arrays are the caller's own. An executor whose process died fails what it holds with
`WorkerLost`, has no free slots from then on and calls `on_exit` once; replacing it is the pool's business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.core.errors import PenstockError
from penstock.core.messages import Parameter
from penstock.core.servable import Signature, Tensors
from penstock.core.tensor import Array
from penstock.core.trace import RequestTrace


@dataclass(slots=True)
class Batch:
    """What an executor runs at once. `parts` are the requests' inputs, in order; joined along axis 0 when `joined`.

    `pad_rows` rows are added at the end by repeating the last row (real values keep a model's numerics tame), and are
    cut off the result again by whoever splits it. With `joined` false there is exactly one part, passed as it is.
    """

    parts: Sequence[Tensors]
    rows: int  # of all parts, without padding
    joined: bool
    pad_rows: int = 0
    parameters: Mapping[str, Parameter] | None = None
    deadline: float = float("inf")  # the latest of its requests', monotonic seconds
    borrow: bool = False  # nobody else computes: the threads that the worker may borrow are free
    traces: tuple[RequestTrace, ...] = ()  # of those of its requests that brought a trace context


@dataclass(slots=True)
class BatchResult:
    """A whole batch's outputs (padding included), owned by the receiver, and where the time went, in seconds."""

    outputs: dict[str, Array]
    compute_input_s: float
    compute_infer_s: float
    compute_output_s: float
    parameters: Mapping[str, Parameter] | None = None  # that the answer carries
    steps: tuple[tuple[str, float], ...] = ()  # of a graph: as `Timings.steps`


Done = Callable[[BatchResult | PenstockError], None]


class Executor(Protocol):
    """One place that runs batches of one servable."""

    signature: Signature

    @property
    def free_slots(self) -> int:
        """How many batches it would take now; 0 when it is busy or gone."""
        ...

    def run(self, batch: Batch, done: Done) -> int:
        """Gives back a number for `abandon`."""
        ...

    def abandon(self, number: int) -> None:
        """Nobody waits for this batch any more: a coroutine is cancelled, anything else runs to its end. `done` is
        still called when it has ended, and only then is its slot free."""
        ...

    def stream(
        self,
        inputs: Tensors,
        parameters: Mapping[str, Parameter],
        deadline: float = float("inf"),
        traces: tuple[RequestTrace, ...] = (),
    ) -> AsyncIterator[Tensors]:
        """The answers to one request, each an owned dict. Takes a slot at once and until the model has stopped; its
        `aclose` stops the model within one item. A broken stream raises, it never just ends."""
        ...

    async def close(self, grace_s: float) -> None:
        """Returns when it is gone: waits up to `grace_s` for what it holds, then kills."""
        ...
