"""What batchers report, and what all of them share: who is told what happened, and how many workers compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.core.messages import Timings


class Recorder(Protocol):
    """Where a batcher reports what happened; see `telemetry.metrics.ModelMetrics`."""

    def record(self, timings: Timings, rows: int) -> None: ...

    def record_answers(self, answered: Sequence[Timings], rows: int) -> None: ...

    def record_batch(
        self, rows: int, padded_rows: int, release: str, compute_input_s: float, compute_infer_s: float,
        compute_output_s: float, worker: int, wait_s: float,
    ) -> None: ...  # fmt: skip

    def record_failure(self, reason: str, seconds: float) -> None: ...

    def refused(self, reason: str) -> None: ...


class Occupancy:
    """How many worker processes compute at this moment, of all models together. Shared by all batchers."""

    __slots__ = ("busy",)

    def __init__(self) -> None:
        self.busy = 0
