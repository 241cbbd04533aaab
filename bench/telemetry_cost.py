"""Prints what telemetry costs: nanoseconds per request and batch, folding included, and per scrape.

    python bench/telemetry_cost.py

The budget is 2 % of a request's 20 µs: 400 ns for `record` and, with batches of one request, `record_batch` together.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from penstock.core.messages import Timings
from penstock.telemetry import exposition
from penstock.telemetry.metrics import Metrics

N = 100_000


def best_ns(run: Callable[[], None], n: int, rounds: int = 7) -> float:
    """The best round's nanoseconds per item; the best, because other processes only ever add."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter_ns()
        run()
        best = min(best, (time.perf_counter_ns() - start) / n)
    return best


def main() -> None:
    metrics = Metrics({"version": "bench"})
    model = metrics.model("iris", 1)
    timings = [
        Timings(i + 0.5, i + 0.50001, i + 0.5001, i + 0.502, 1e-5, 1.5e-3, 2e-5, 1, "idle") for i in range(1000)
    ] * (N // 1000)

    def loop() -> None:
        for _ in timings:
            pass

    def record() -> None:
        take = model.record
        for item in timings:
            take(item, 1)

    def record_answers() -> None:
        take = model.record_answers
        for start in range(0, N, 16):
            take(timings[start : start + 16], 16)

    def record_batch() -> None:
        take = model.record_batch
        for _ in timings:
            take(1, 0, "idle", 1e-5, 1.5e-3, 2e-5, 0, 1e-4)

    def refuse() -> None:
        take = model.refused
        for _ in timings:
            take("queue_full")

    base = best_ns(loop, N)
    print(f"record        {best_ns(record, N) - base:8.0f} ns a request, folding included")
    print(f"in batches    {best_ns(record_answers, N):8.0f} ns a request, of 16 requests each")
    print(f"record_batch  {best_ns(record_batch, N) - base:8.0f} ns a batch, folding included")
    print(f"refused       {best_ns(refuse, N) - base:8.0f} ns a request")
    for count in (1, 100, 1000):
        for number in range(count):
            metrics.model(f"m{number}", 1).record(timings[0], 1)
        snapshot_ms = best_ns(lambda: (metrics.snapshot(), None)[1], 1) / 1e6
        text_ms = best_ns(lambda: (exposition.text(metrics.snapshot()), None)[1], 1, 3) / 1e6
        print(f"with {count:4} models: snapshot {snapshot_ms:8.2f} ms, with its text {text_ms:8.2f} ms")


if __name__ == "__main__":
    main()
