"""The load: `wrk` for HTTP, `h2load` for gRPC, both one thread of C; and single calls to look at an answer.

Neither client builds anything while it runs: one request is written down before and sent again and again.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np

from harness.wire import Call, Encoded, grpc_frame

INSTALL = {"wrk": "apt-get install wrk", "h2load": "apt-get install nghttp2-client"}

# At most this many HTTP/2 connections carry the concurrent gRPC calls: clients multiplex, servers spread connections.
GRPC_CONNECTIONS = 8

WRK_SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  local form = '\\nRESULT {{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"failures":%d}}\\n'
  io.write(string.format(form, summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


class ClientFailed(Exception):
    """The load generator did not run; the message has what it printed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a client saw. Times in seconds; failures are answers that are not 2xx, and broken connections."""

    rate: float
    p50_s: float
    p99_s: float
    requests: int
    failures: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def missing() -> dict[str, str]:
    """Client programs that are not installed → how to get them."""
    return {name: how for name, how in INSTALL.items() if shutil.which(name) is None}


def ask(call: Call, port: int, message: Encoded, timeout_s: float = 20.0) -> np.ndarray:
    """One answer. Raises whatever went wrong."""
    if call.grpc:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else a refused connection backs off for all later channels
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            method = channel.unary_unary(call.path, request_serializer=None, response_deserializer=None)
            return call.decode(method(message.body, timeout=timeout_s), {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", call.path, message.body, dict(message.headers))
        response = connection.getresponse()
        body = response.read()
        if response.status // 100 != 2:
            raise ClientFailed(f"status {response.status}: {body[:300]!r}")
        return call.decode(body, {name.lower(): value for name, value in response.getheaders()})
    finally:
        connection.close()


def count_wrong(call: Call, port: int, inputs: np.ndarray, answers: np.ndarray) -> int:
    """Asks for every row at the same time, so that a server which joins requests must take its answers apart again.
    Gives the number of answers that are wrong or failed."""

    def wrong(row: int) -> bool:
        try:
            answer = ask(call, port, call.encode(inputs[row : row + 1]))
        except Exception:  # whatever it was, this caller has no answer
            return True
        return not np.allclose(answer, answers[row : row + 1], rtol=1e-3, atol=1e-4)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return sum(pool.map(wrong, range(len(inputs))))


def load(call: Call, port: int, message: Encoded, connections: int, seconds: int, folder: Path) -> Load:
    """Sends `message` with `connections` requests in flight for `seconds`, in a closed loop."""
    if call.grpc:
        return load_grpc(call, port, message, connections, seconds, folder)
    return load_http(call, port, message, connections, seconds, folder)


def load_http(call: Call, port: int, message: Encoded, connections: int, seconds: int, folder: Path) -> Load:
    body, script = folder / "body", folder / "load.lua"
    body.write_bytes(message.body)
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in message.headers.items())
    script.write_text(WRK_SCRIPT.format(body=body, headers=headers))
    url = f"http://127.0.0.1:{port}{call.path}"
    arguments = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "15s",
        "-s",
        str(script),
        url,
    ]
    output = run(arguments, seconds)
    found = re.search(r"RESULT (\{.*\})", output)
    if found is None:
        raise ClientFailed(output)
    seen = json.loads(found[1])
    good = seen["requests"] - seen["failures"]
    return Load(
        rate=max(0, good) / (seen["duration_us"] / 1e6),
        p50_s=seen["p50_us"] / 1e6,
        p99_s=seen["p99_us"] / 1e6,
        requests=seen["requests"],
        failures=seen["failures"],
    )


def load_grpc(call: Call, port: int, message: Encoded, connections: int, seconds: int, folder: Path) -> Load:
    """A gRPC error is a 200 without a message, so answers are counted by the data bytes that came back."""
    body, log = folder / "frame", folder / "latencies"
    body.write_bytes(grpc_frame(message.body))
    log.unlink(missing_ok=True)
    carriers = min(connections, GRPC_CONNECTIONS)
    arguments = ["h2load", "-t1", f"-c{carriers}", f"-m{connections // carriers}", f"-D{seconds}"]
    arguments += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(body)]
    arguments += ["--log-file", str(log), f"http://127.0.0.1:{port}{call.path}"]
    output = run(arguments, seconds)
    counts = re.search(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    data = re.search(r"traffic: .*\((\d+)\) data", output)
    if counts is None or data is None:
        raise ClientFailed(output)
    succeeded, failed = int(counts[2]), int(counts[3])
    empty = 0
    if succeeded:
        expected = len(grpc_answer(call, port, message))
        empty = max(0, round(succeeded - int(data[1]) / expected))
    times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return Load(
        rate=(succeeded - empty) / seconds,
        p50_s=times[len(times) // 2] / 1e6 if times else 0.0,
        p99_s=times[int(len(times) * 0.99)] / 1e6 if times else 0.0,
        requests=succeeded + failed,
        failures=failed + empty,
    )


def grpc_answer(call: Call, port: int, message: Encoded) -> bytes:
    """One answer's frame as it is on the wire."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(call.path, request_serializer=None, response_deserializer=None)
        return grpc_frame(method(message.body, timeout=20.0))


def run(arguments: list[str], seconds: float) -> str:
    """The program's output. Raises ClientFailed when it fails or hangs."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds + 40.0, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClientFailed(f"{arguments[0]} did not end") from error
    if done.returncode != 0:
        raise ClientFailed(f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
    return done.stdout
