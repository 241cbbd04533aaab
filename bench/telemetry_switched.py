"""Prints what telemetry costs a server's loop, by switching each part on and off in one running server.

    python bench/telemetry_switched.py --seconds 20

`wrk` loads one server with the digits model (W1). A thread in that server switches a part every tenth of a second and
reads, for each slice, the loop's own processor time and the number of answers. Neighbouring slices make a pair, so a
machine that is slower for a while is slower for both: this finds 1 % where comparing servers (telemetry_end_to_end.py)
finds noise. Printed are the medians of the pairs' differences, and the interval that holds each with 95 %.

What the loop does not do is not in these figures: spans are made and sent in a thread, 16 µs for each recorded request
(at most a tenth of its time), and a scrape takes 0.4 ms in another.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from penstock.runtime.listeners.site import Site

SLICE_S = 0.1
PARTS = ("metrics", "Server-Timing", "spans 1 %", "metrics, header and spans 1 %", "spans 100 %", "access log")


def switched(seconds: float) -> None:
    """Runs the server, and a thread that measures it when the first line comes on standard input."""
    from penstock.cli import app
    from penstock.runtime.listeners.site import Site

    sites: list[Site] = []
    make = Site.__init__

    def remember(self: Site, *arguments: object) -> None:
        make(self, *arguments)  # type: ignore[arg-type]  # passed on as they are
        sites.append(self)

    Site.__init__ = remember  # type: ignore[method-assign]
    threading.Thread(target=_measure, args=(seconds, threading.get_ident(), sites), daemon=True).start()
    app.main(sys.argv[3:])


def _measure(seconds: float, loop_thread: int, sites: list[Site]) -> None:
    from penstock.runtime.listeners.witness import Witness
    from penstock.telemetry.logs import ACCESS
    from penstock.telemetry.metrics import ModelMetrics
    from penstock.telemetry.spans import Spans

    sys.stdin.readline()
    (site,) = sites
    options, counters = site.options, site.counters
    logging.getLogger(ACCESS).setLevel(logging.INFO)  # the witness decides
    clock = time.pthread_getcpuclockid(loop_thread)
    recorders = {name: getattr(ModelMetrics, name) for name in ("record_answers", "record_batch")}
    few, all_of_them = (Witness(Spans(share, _Nowhere()), False) for share in (0.01, 1.0))

    def nothing(*_: object) -> None:
        return

    def metrics(on: bool) -> None:
        for name, recorder in recorders.items():
            setattr(ModelMetrics, name, recorder if on else nothing)

    def header(on: bool) -> None:
        object.__setattr__(options, "timing_headers", on)

    def witness(which: object) -> Callable[[bool], None]:
        return lambda on: object.__setattr__(options, "witness", which if on else None)

    def everything(on: bool) -> None:
        for switch in (metrics, header, witness(few)):
            switch(on)

    switches = (metrics, header, witness(few), everything, witness(all_of_them), witness(Witness(None, True)))
    for part, switch in zip(PARTS, switches, strict=True):
        times: list[tuple[float, float]] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pair = {}
            for on in random.sample((False, True), 2):
                switch(on)
                time.sleep(0.005)  # what is under way ends in the old state
                before_s, before = time.clock_gettime(clock), sum(counters.responses)
                time.sleep(SLICE_S)
                used_s, answered = time.clock_gettime(clock) - before_s, sum(counters.responses) - before
                pair[on] = used_s / answered * 1e6 if answered > 100 else 0.0
            if all(pair.values()):
                times.append((pair[False], pair[True]))
        switch(part == "metrics")  # what a server does without options
        print(json.dumps({"part": part, "pairs": times}), flush=True)


class _Nowhere:
    """An exporter for spans whose making is not to be measured."""

    def export(self, ended: object) -> bool:
        return True

    def shutdown(self) -> None: ...


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the interval that holds it with 95 % (bootstrap)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(4000))
    return statistics.median(values), medians[100], medians[-101]


def main() -> None:
    from harness import clients, workload
    from harness.wire import v2_json_call

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part and number of connections")
    parser.add_argument("--connections", type=int, nargs="*", default=(1, 16, 64))
    options = parser.parse_args()
    models = Path(__file__).parent / "results" / "models"
    message = v2_json_call("digits").encode(workload.load(models, "digits").inputs[:1])
    for connections in options.connections:
        command = [sys.executable, __file__, "--switched", str(options.seconds), "serve", str(models / "digits.onnx")]
        command += ["--http-port", "0", "--no-grpc", "--log-format", "json"]
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=nowhere, text=True, cwd=folder
            )
            try:
                assert process.stdin is not None and process.stdout is not None
                event: dict[str, str] = {}
                while event.get("event") != "serving":
                    event = json.loads(process.stdout.readline())
                port = int(event["http"].rpartition(":")[2])
                whole = int((options.seconds + 1) * len(PARTS)) + 3
                load = threading.Thread(
                    target=clients.load_http,
                    args=(v2_json_call("digits"), port, message, connections, whole, Path(folder)),
                )
                load.start()
                time.sleep(2.0)
                process.stdin.write("go\n")
                process.stdin.flush()
                print(f"\n{connections} connections, load average {os.getloadavg()[0]:.1f}")
                for _ in PARTS:
                    found = json.loads(process.stdout.readline() or "null")
                    if found is None:
                        raise SystemExit("the server ended")
                    off = statistics.median(pair[0] for pair in found["pairs"])
                    middle, low, high = interval([on - off for off, on in found["pairs"]])
                    share, low_share, high_share = interval([(on / off - 1) * 100 for off, on in found["pairs"]])
                    print(
                        f"{found['part']:30} {middle:+6.2f} µs [{low:+.2f} … {high:+.2f}]   {share:+6.1f} % "
                        f"[{low_share:+.1f} … {high_share:+.1f}] of {off:.1f} µs   {len(found['pairs'])} pairs",
                        flush=True,
                    )
            finally:
                process.terminate()
                process.wait(30)
                load.join()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--switched"]:
        switched(float(sys.argv[2]))
    else:
        main()
