"""How fast ONNX Runtime itself runs a model on this machine, with no server around it.

As a program (`-m harness.inprocess MODEL INPUTS.npy ROWS THREADS SECONDS BEGIN`) it runs batches of ROWS rows for
SECONDS from the time BEGIN, and prints what it saw. `load` starts as many of them as a server would have workers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.clients import Load
from harness.workload import Workload

START_S = 2.0  # time for all processes to load the model before they begin together


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of running a model inside processes, and the point whose limit it is."""

    point: str
    words: str
    workload: str
    processes: int
    threads: int
    rows: int


SETTINGS = (
    Setting("W1/1", "1 process, batches of 1", "digits", 1, 1, 1),
    Setting("W1/16", "2 processes, batches of 1", "digits", 2, 1, 1),
    Setting("W1/64", "2 processes, batches of 32", "digits", 2, 1, 32),
    Setting("W2/1", "1 process, all cores", "conv", 1, 2, 1),
    Setting("W2/8", "2 processes, 1 thread each", "conv", 2, 1, 1),
)


def load(setting: Setting, workload: Workload, seconds: float) -> Load:
    """Rows/s of all processes together; times are those of one batch."""
    arguments = (setting.rows, setting.threads, seconds, time.time() + START_S)
    command = [
        sys.executable,
        "-m",
        "harness.inprocess",
        workload.model,
        workload.model.with_suffix(".npy"),
        *arguments,
    ]
    words, bench = [str(part) for part in command], Path(__file__).parent.parent
    processes = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=bench) for _ in range(setting.processes)
    ]
    seen = [json.loads(process.communicate()[0]) for process in processes]
    return Load(
        rate=sum(each["rate"] for each in seen),
        p50_s=statistics.mean(each["p50_s"] for each in seen),
        p99_s=max(each["p99_s"] for each in seen),
        requests=sum(each["rows"] for each in seen),
        failures=0,
    )


def main(model: str, inputs: str, rows: int, threads: int, seconds: float, begin: float) -> None:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = np.load(inputs)[:rows]
    session.run(None, {"x": batch})
    time.sleep(max(0.0, begin - time.time()))
    began = now = time.perf_counter()
    times = []
    while now - began < seconds:
        session.run(None, {"x": batch})
        before, now = now, time.perf_counter()
        times.append(now - before)
    times.sort()
    seen = {
        "rate": len(times) * rows / (now - began),
        "rows": len(times) * rows,
        "p50_s": times[len(times) // 2],
        "p99_s": times[int(len(times) * 0.99)],
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    model, inputs, rows, threads, seconds, begin = sys.argv[1:]
    main(model, inputs, int(rows), int(threads), float(seconds), float(begin))
