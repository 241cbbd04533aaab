"""What passes through the one door: a Request in, a Response (or several) out.

Times inside are seconds of `time.monotonic()`. Requests are made by `protocols`, which know the wire, and are
not frozen only because the hot path fills in their timings; nobody but their owner of the moment writes to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.core.tensor import Array
from penstock.core.trace import RequestTrace, TraceContext

Parameter = bool | int | float | str

NO_DEADLINE = math.inf


@dataclass(slots=True)
class Timings:
    """Where one request's time went. Points are monotonic seconds (0.0: not reached), the rest durations in seconds."""

    received: float = 0.0  # the whole request was read
    submitted: float = 0.0  # checked and in the queue
    dispatched: float = 0.0  # its batch was closed and handed to a worker
    finished: float = 0.0  # its answer was there
    compute_input_s: float = 0.0  # joining the batch and crossing to the worker
    compute_infer_s: float = 0.0  # inside the servable
    compute_output_s: float = 0.0  # crossing back and splitting
    batch_rows: int = 0
    release: str = ""  # why the batch was closed: see runtime/batching/policy.py
    steps: tuple[tuple[str, float], ...] = ()  # of a graph: each step's name and seconds, in the order they ended


@dataclass(slots=True)
class Request:
    """One inference request. `inputs` axis 0 is the batch when the model's signature says so."""

    model: str
    inputs: dict[str, Array]
    version: str = ""  # "" is the default version; digits a number; anything else a label
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()  # names asked for; empty is all
    deadline: float = NO_DEADLINE
    priority: int = 0  # 0 is the default level, 1 the highest, as in the V2 protocol
    timings: Timings = field(default_factory=Timings)
    trace: TraceContext | None = None  # what the caller sent of its trace; `span_id` is the parent of the model's spans
    caller: str = ""  # whose key came with it; "" is nobody in particular
    internal: bool = False  # made inside the server (of a language model); never of what came over a wire
    # Of a stream of pieces (`core.servable.PouringServable`): takes what a piece counts for, and the piece, while the
    # iterator's reader waits for the next answer and would do nothing else with it. False: it comes from the iterator.
    # Never raises. Whoever cannot pass it on may leave it alone.
    push: Callable[[int, bytes], bool] | None = None


@dataclass(slots=True)
class Response:
    """One answer. `outputs` in the signature's order; `version` is the number that answered."""

    model: str
    version: str
    outputs: dict[str, Array]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    traces: tuple[RequestTrace, ...] = ()  # of all traced requests of its batch
    count: int = 0  # of a stream of pieces: what this one counts for, as its servable says
