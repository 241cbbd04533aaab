"""Prints what telemetry costs a whole server: the digits model over HTTP (W1), without recording and with each part.

    python bench/telemetry_end_to_end.py --pairs 12 --seconds 2

All servers run all the time; `wrk` loads one at a time, in turns, in an order that changes, so that whatever else the
machine does meets all of them. Each round gives one ratio to the server without recording. Printed are the median of
the ratios and the interval that holds it with 95 % (bootstrap), of the requests per second and of the server's own
processor time for a request, which other programs on the machine disturb less.

`off` is the same program whose recorders are replaced by empty functions before it starts. There is no such option: a
server that counts nothing would answer its statistics with zeros.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import clients, workload
from harness.wire import Encoded, v2_json_call

MODELS = Path(__file__).parent / "results" / "models"
CONNECTIONS = (1, 16, 64)
SCRAPE_S = 1.0  # fifteen times as often as is usual

VARIANTS: dict[str, tuple[str, ...]] = {
    "off": (),
    "metrics": (),
    "scraped": (),
    "Server-Timing": ("--timing-headers",),
    "all on": ("--timing-headers", "--trace-endpoint", "{receiver}", "--trace-sampling", "0.01"),
    "spans 1 %": ("--trace-endpoint", "{receiver}", "--trace-sampling", "0.01"),
    "spans 100 %": ("--trace-endpoint", "{receiver}", "--trace-sampling", "1"),
    "access log": ("--access-log",),
}
MEANING = {
    "off": "nothing is recorded",
    "metrics": "as a server is without options",
    "scraped": "metrics, and a scrape every second",
    "Server-Timing": "metrics, and the header in every answer",
    "all on": "a scrape every second, Server-Timing, spans of 1 %",
    "spans 1 %": "the default share",
    "spans 100 %": "a span of every request, as far as the thread keeps up",
    "access log": "a line for every request, to /dev/null",
}


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    process: subprocess.Popen[str]
    port: int

    def cpu_s(self) -> float:
        """The processor time that the server and its threads have used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def scrape(self) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return answer.read()


@dataclass(frozen=True, slots=True)
class Round:
    rate: float
    cpu_us: float  # of one request
    failures: int


def serve_without_recording(arguments: list[str]) -> None:
    """Runs the server with recorders that do nothing."""
    from penstock.cli import app
    from penstock.telemetry.metrics import ModelMetrics

    def nothing(*_: object) -> None:
        return

    for name in ("record", "record_answers", "record_batch", "record_failure", "refused"):
        setattr(ModelMetrics, name, nothing)
    app.main(arguments)


def receive() -> None:
    """A receiver of spans that throws them away, in a process of its own. Prints its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def started(name: str, flags: tuple[str, ...], folder: Path) -> Iterator[Server]:
    penstock = (
        [sys.executable, "-m", "penstock.cli"] if name != "off" else [sys.executable, __file__, "--serve-without"]
    )
    command = [*penstock, "serve", str(MODELS / "digits.onnx"), "--http-port", "0", "--no-grpc", "--log-format", "json"]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=nowhere, text=True, cwd=folder)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                if (event := json.loads(line)).get("event") == "serving":
                    yield Server(name, process, int(event["http"].rpartition(":")[2]))
                    return
        raise SystemExit(f"{name} did not start")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def measure(server: Server, message: Encoded, connections: int, seconds: int, folder: Path) -> Round:
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_S):
            server.scrape()

    scraper = threading.Thread(target=scrape)
    if server.name in ("scraped", "all on"):
        scraper.start()
    before_s = server.cpu_s()
    load = clients.load_http(v2_json_call("digits"), server.port, message, connections, seconds, folder)
    used_s = server.cpu_s() - before_s
    stop.set()
    if scraper.ident is not None:
        scraper.join()
    return Round(load.rate, used_s / max(1, load.requests) * 1e6, load.failures)


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the interval that holds it with 95 %."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    return statistics.median(ratios), medians[100], medians[-101]


def told(values: list[float]) -> str:
    middle, low, high = ((value - 1) * 100 for value in interval(values))
    return f"{middle:+6.1f} %  [{low:+.1f} … {high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, nargs="*", default=CONNECTIONS)
    parser.add_argument("--only", nargs="*", default=[name for name in VARIANTS if name != "off"])
    options = parser.parse_args()
    digits = workload.load(MODELS, "digits")
    message = v2_json_call("digits").encode(digits.inputs[:1])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        receiver = subprocess.Popen([sys.executable, __file__, "--receive"], stdout=subprocess.PIPE, text=True)
        stack.callback(receiver.wait)
        stack.callback(receiver.terminate)
        assert receiver.stdout is not None
        endpoint = f"http://127.0.0.1:{receiver.stdout.readline().strip()}/v1/traces"
        servers = [
            stack.enter_context(started(name, tuple(flag.format(receiver=endpoint) for flag in VARIANTS[name]), folder))
            for name in ("off", *options.only)
        ]
        for server in servers:
            measure(server, message, 16, 1, folder)  # warm
        print(f"{options.pairs} rounds of {options.seconds} s; load average {os.getloadavg()[0]:.1f} before")
        order = random.Random(0)
        for connections in options.connections:
            rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
            for _ in range(options.pairs):
                for server in order.sample(servers, len(servers)):
                    rounds[server.name].append(measure(server, message, connections, options.seconds, folder))
                    time.sleep(0.05)
            off = rounds["off"]
            rate = statistics.median(one.rate for one in off)
            print(f"\n{connections} connections; off: {rate:,.0f} requests/s, "
                  f"{statistics.median(one.cpu_us for one in off):.1f} µs of processor time for one")  # fmt: skip
            print(f"{'':14} {'requests/s':>32} {'processor time a request':>34}")
            for name in options.only:
                pairs = list(zip(rounds[name], off, strict=True))
                rates = told([one.rate / other.rate for one, other in pairs])
                times = told([one.cpu_us / other.cpu_us for one, other in pairs])
                failed = sum(one.failures for one in rounds[name])
                print(f"{name:14} {rates:>32} {times:>34}   {MEANING[name]}{f'; {failed} FAILED' if failed else ''}")
        for server in servers:
            counts = [line for line in server.scrape().decode().splitlines() if line.startswith("penstock_traced")]
            if counts:
                print(f"\n{server.name}: {'; '.join(counts)}")
        print(f"load average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-without"]:
        serve_without_recording(sys.argv[2:])
    elif sys.argv[1:2] == ["--receive"]:
        receive()
    else:
        main()
