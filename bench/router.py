"""The router's own cost: what one router carries beside what the replica behind it gives alone, and the time it adds.

    python bench/router.py [--seconds 5] [--turns 3] [--connections 64]

Starts `penstock serve` with a tiny ONNX model (64 → 64 → 32 → 10, one row of JSON) and a router in front of it, which
follows a table on disk; there is no controller. `wrk` asks both in turns, so that whatever else the machine does falls
on both. Then `h2load --h1` sends half of what the router carried, at a fixed rate, to each in turns: the difference of
the quantiles is what the router adds. Needs wrk, h2load (nghttp2-client) and onnx.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

PATH = "/v2/models/digits/infer"


def make_model(file: Path) -> None:
    """A small multilayer perceptron with random weights: only its cost matters."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index, (rows, columns) in enumerate(((64, 64), (64, 32), (32, 10))):
        weights += [
            numpy_helper.from_array(random.normal(size=(rows, columns)).astype(np.float32), f"w{index}"),
            numpy_helper.from_array(np.zeros(columns, np.float32), f"b{index}"),
        ]
        nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [f"h{index}"]))
        value = f"h{index}"
        if index < 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
    nodes.append(helper.make_node("Softmax", [value], ["y"], axis=-1))
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def start_replica(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The process, and `host:port` once it serves."""
    make_model(folder / "digits.onnx")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "penstock.cli", "serve", str(folder / "digits.onnx"), "--name", "digits",
            "--http-port", "0", "--no-grpc", "--log-format", "json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if '"serving"' in line:
            return process, json.loads(line)["http"].removeprefix("http://")
    raise SystemExit(f"the replica did not start: status {process.wait()}")


def start_router(folder: Path, replica: str) -> tuple[subprocess.Popen[bytes], str]:
    """The process, and `host:port` once it answers."""
    import socket

    upstreams = [{"id": "digits-1", "http": replica}]
    arm = {"revision": 1, "weight": 1.0, "upstreams": upstreams}
    table = {"version": 1, "endpoints": [{"name": "digits", "arms": [arm], "stable": 1}]}
    (folder / "routes.json").write_text(json.dumps(table))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.fleet.router", "--state", str(folder), "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    by = time.monotonic() + 20
    while time.monotonic() < by and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1).read()
            return process, f"127.0.0.1:{port}"
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the router did not start")


def rate(address: str, connections: int, seconds: float, script: Path) -> float:
    """Requests per second that are answered with 2xx; raises when any is not."""
    text = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script), f"http://{address}{PATH}"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(text)
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert found is not None
    return float(found[1])


def latencies_ms(address: str, per_second: float, seconds: float, folder: Path) -> list[float]:
    """Of every request, sent at a fixed rate over 16 connections."""
    log = folder / "latencies"
    log.unlink(missing_ok=True)
    subprocess.run(
        [
            "h2load", "--h1", "-t1", "-c16", f"-D{seconds:.0f}", "--rps", f"{per_second / 16:.1f}",
            f"--log-file={log}", "-d", str(folder / "body"), "-H", "content-type: application/json",
            f"http://{address}{PATH}",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    rows = [line.split() for line in log.read_text().splitlines()]
    assert all(row[1] == "200" for row in rows), "a request was not answered with 200"
    return [int(row[2]) / 1e3 for row in rows[len(rows) // 10 :]]  # without the first moments


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    given = parser.parse_args()
    for tool in ("wrk", "h2load"):
        if shutil.which(tool) is None:
            sys.exit(f"this needs {tool}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = np.random.default_rng(1).random((1, 64)).round(4).tolist()
        body = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row[0]}]}
        (folder / "body").write_text(json.dumps(body))
        script = folder / "post.lua"
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = [==[{json.dumps(body)}]==]\n'
            'wrk.headers["Content-Type"] = "application/json"\n'
        )
        replica, direct = start_replica(folder)
        router, through = start_router(folder, direct)
        try:
            for address in (direct, through):
                rate(address, given.connections, 1, script)
            alone, routed, costs = [], [], []
            for _ in range(given.turns):
                alone.append(rate(direct, given.connections, given.seconds, script))
                before = cpu_s(router.pid)
                routed.append(rate(through, given.connections, given.seconds, script))
                costs.append((cpu_s(router.pid) - before) / (routed[-1] * given.seconds) * 1e6)
            half = statistics.median(routed) / 2
            added: dict[str, list[float]] = {"direct": [], "router": []}
            for _ in range(given.turns):
                added["direct"] += latencies_ms(direct, half, given.seconds, folder)
                added["router"] += latencies_ms(through, half, given.seconds, folder)
        finally:
            for process in (router, replica):
                process.send_signal(signal.SIGTERM)
                process.wait(30)
    ratio = statistics.median(routed) / statistics.median(alone)
    print(f"alone           {statistics.median(alone):9,.0f} requests/s  {[round(value) for value in alone]}")
    print(f"through router  {statistics.median(routed):9,.0f} requests/s  {[round(value) for value in routed]}")
    print(f"ratio           {ratio:9.2f}")
    print(f"router          {statistics.median(costs):9.1f} µs of processor a request")
    quantiles = {name: np.percentile(values, (50, 99)) for name, values in added.items()}
    for name, (median, high) in quantiles.items():
        print(f"{name:15} {half:9,.0f} requests/s: p50 {median:.3f} ms, p99 {high:.3f} ms")
    difference = quantiles["router"] - quantiles["direct"]
    print(f"added           p50 {difference[0]:.3f} ms, p99 {difference[1]:.3f} ms")


if __name__ == "__main__":
    main()
