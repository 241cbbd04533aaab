"""P6a, F22: under traffic of every kind, no process of a server grows: not in memory, files, threads or segments."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mixed_load import SORTS, Mix, write_models
from watched_processes import Held, Slope, Watch, family, named_shared_memory, slope, zombies

pytestmark = pytest.mark.alone

Figure = Callable[..., None]

SOAK_HOURS = float(os.environ.get("SOAK_HOURS", "24"))


@dataclass(frozen=True)
class Run:
    """How long traffic runs before and while memory is watched, and how much a process may grow."""

    warm_s: float
    watched_s: float
    warm_requests: int  # both must be over: a slow machine takes longer to reach its steady state
    watched_requests: int
    most_bytes_per_request: float
    pause_s: float = 0.0

    @property
    def look_s(self) -> float:
        # The estimate looks at all pairs of samples, so a day has no more of them than five minutes.
        return max(0.2, self.watched_s / 500)


# 1 MB in an hour with 10 million requests in 24 hours is 2.4 bytes for a request. Growth of the first minutes (allocators
# that find their size, caches that fill) is in any run that starts cold, so the shorter ones allow more.
PROMISED = 2.4
SHORT = Run(3.0, 3.0, 15_000, 8_000, 200.0)
LONG = Run(90.0, 300.0, 200_000, 300_000, 4 * PROMISED)
SOAK = Run(1800.0, SOAK_HOURS * 3600, 200_000, 1_000_000, PROMISED, pause_s=0.05)


async def watched(running: Any, mix: Mix, run: Run, sorts: tuple[str, ...] = SORTS) -> tuple[Watch, float, int]:
    """The samples of a whole run, the moment from which they count, and the requests since then."""
    watch = Watch(running.pid)
    mix.start(sorts=sorts, pause_s=run.pause_s)
    try:
        began = time.monotonic()
        while time.monotonic() - began < run.warm_s or mix.requests < run.warm_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        warm, asked = time.monotonic(), mix.requests
        while time.monotonic() - warm < run.watched_s or mix.requests - asked < run.watched_requests:
            await asyncio.to_thread(watch.look)
            await asyncio.sleep(run.look_s)
        asked = mix.requests - asked
    finally:
        await mix.stop()
    return watch, warm, asked


def growth(samples: list[Held]) -> Slope:
    return slope([held.at_s for held in samples], [float(held.own_bytes) for held in samples])


def risen(samples: list[Held], count: Callable[[Held], int]) -> float:
    """How far the median of the last third lies above that of the first."""
    third = max(1, len(samples) // 3)
    return statistics.median(map(count, samples[-third:])) - statistics.median(map(count, samples[:third]))


def too_much(watch: Watch, since: float, requests: int, most_bytes_per_request: float) -> Iterator[str]:
    """What each process has grown by beyond the bounds."""
    for name, samples in watch.since(since):
        seconds = samples[-1].at_s - samples[0].at_s
        grown = growth(samples)
        per_request = grown.per_s * seconds / requests
        print(
            f"{name}: {samples[-1].own_bytes / 1e6:.1f} MB, {grown.per_s * 3.6e-3:+.2f} MB/h "
            f"[{grown.least * 3.6e-3:+.2f}, {grown.most * 3.6e-3:+.2f}], {per_request:+.2f} bytes a request, "
            f"{samples[-1].threads} threads, files {dict(samples[-1].files)}, {samples[-1].shared_maps} segments"
        )
        if per_request > most_bytes_per_request:
            yield f"{name}: {per_request:.1f} bytes a request"
        for what, count, most in (
            ("open files", lambda held: held.open_files, 3),  # connections come and go while it is looked
            ("threads", lambda held: held.threads, 1),  # each look at the disk has a short one of its own
            ("shared segments", lambda held: held.shared_maps, 0),
        ):
            if (more := risen(samples, count)) > most:
                yield f"{name}: {more:g} more {what}"


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(LONG, id="five-minutes", marks=[pytest.mark.chaos, pytest.mark.timeout(1200)]),
        pytest.param(SOAK, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
    ],
)
async def test_no_process_grows_under_traffic_of_every_kind(
    server: Callable[..., Any], tmp_path: Path, figure: Figure, run: Run
) -> None:
    running = server(write_models(tmp_path), fronts=2, log_level="error")
    before = set(family(running.pid))
    mix = Mix(running.http, running.grpc)
    watch, warm, requests = await watched(running, mix, run)
    faults = list(too_much(watch, warm, requests, run.most_bytes_per_request))
    assert mix.wrong == []
    assert faults == []
    assert set(family(running.pid)) == before, "a process ended or came"
    assert zombies(running.pid) == []
    assert named_shared_memory() == set()
    steepest = max(growth(samples).per_s for _, samples in watch.since(warm))
    figure("P6a", "growth of the fastest growing process", steepest * 3.6e-3, "MB/h", goal="≤ 1 MB/h over 24 h")
    seconds = max(samples[-1].at_s for _, samples in watch.since(warm)) - warm
    figure("P6a", "the same for each request", steepest * seconds / requests, "bytes", goal="≤ 2.4 bytes")


async def test_slope_sees_a_model_that_keeps_a_kilobyte_of_every_request(
    server: Callable[..., Any], tmp_path: Path
) -> None:
    models = write_models(tmp_path)
    running = server({**models, "keeps": f"{tmp_path}/mixed.py:Keeps"}, log_level="error")
    mix = Mix(running.http, running.grpc, more=("keeps",))
    run = Run(0.5, 1.5, 1_000, 3_000, SHORT.most_bytes_per_request)
    watch, warm, requests = await watched(running, mix, run, sorts=("good",))
    faults = list(too_much(watch, warm, requests, run.most_bytes_per_request))
    assert ["worker", "keeps@1"] in [fault.split()[:2] for fault in faults]
