"""The HTTP listener's own cost: no-op inferences over one keep-alive core, measured with wrk.

    python bench/http_listener.py [--seconds 5] [--profile]

The server decodes a JSON body, submits it to a door that answers at once, and encodes; the model is a no-op. Printed
are requests per second and the server's processor time per request (user and system, from getrusage), the figure
that does not depend on how much of the machine wrk gets.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import orjson
import uvloop

from penstock.core.errors import PenstockError
from penstock.core.messages import Request, Response
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, InferRoute, Route
from penstock.runtime.listeners.http import HttpListener
from penstock.runtime.listeners.http_options import HttpOptions

BODY = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]})
ANSWER = orjson.dumps({
    "model_name": "noop", "model_version": "1",
    "outputs": [{"name": "y", "shape": [1], "datatype": "INT64", "data": [0]}],
})  # fmt: skip


class NoopDoor:
    """Answers with the inputs: at once, or in the loop's next iteration as a batcher does."""

    def __init__(self, later: bool) -> None:
        self._later = later

    def submit(self, request: Request) -> asyncio.Future[Response]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        response = Response(request.model, "1", request.inputs, timings=request.timings)
        if self._later:
            loop.call_soon(future.set_result, response)
        else:
            future.set_result(response)
        return future

    async def stream(self, request: Request) -> AsyncIterator[Response]:
        yield await self.submit(request)


class NoopExchange:
    __slots__ = ("json", "request")

    def __init__(self, request: Request, json: bool) -> None:
        self.request = request
        self.json = json

    def encode(self, response: Response) -> HttpResponse:
        if not self.json:
            return HttpResponse(200, ANSWER)
        output = {"name": "y", "shape": [1, 4], "datatype": "FP32", "data": response.outputs["x"].tolist()}
        return HttpResponse(200, orjson.dumps({"model_name": "noop", "model_version": "1", "outputs": [output]}))


def decode_nothing(http: HttpRequest, door: Any) -> NoopExchange:
    return NoopExchange(Request("noop", {}), json=False)


def decode_json(http: HttpRequest, door: Any) -> NoopExchange:
    tensor = orjson.loads(http.body)["inputs"][0]
    x = np.array(tensor["data"], dtype=np.float32)
    return NoopExchange(Request(http.match["model"], {"x": x}), json=True)


async def health(http: HttpRequest, door: Any) -> HttpResponse:
    return HttpResponse(200, b"")


class NoopProtocol:
    name = "noop"
    title = "No-op"

    def routes(self) -> Sequence[Route]:
        return [
            InferRoute("POST", "/v2/models/{model}/infer", decode_json, "JSON in and out"),
            InferRoute("POST", "/bare/{model}/infer", decode_nothing, "no codec at all: the listener alone"),
            CallRoute("GET", "/v2/health/live", health, "health", public=True),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        return HttpResponse(500, orjson.dumps({"error": str(error)}))


def serve(pipe: Connection, keys: tuple[str, ...], later: bool, profile: str | None) -> None:
    """One server process: tells its port, then its processor time whenever it is asked."""

    async def main() -> None:
        listener = HttpListener(NoopDoor(later), [NoopProtocol()], HttpOptions(api_keys=keys))  # type: ignore[arg-type]
        pipe.send(await listener.start("127.0.0.1", 0))
        over = asyncio.Event()

        def asked() -> None:
            if pipe.recv() == "stop":
                over.set()
                return
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((usage.ru_utime + usage.ru_stime, sum(listener.counters.responses)))

        asyncio.get_running_loop().add_reader(pipe.fileno(), asked)
        await over.wait()
        await listener.drain(0.0)

    if profile is None:
        uvloop.run(main())
        return
    import cProfile

    profiler = cProfile.Profile()
    profiler.runcall(uvloop.run, main())
    profiler.dump_stats(profile)


def wrk(url: str, connections: int, seconds: float, body: bytes | None, headers: Sequence[str]) -> tuple[float, str]:
    """Requests per second, and wrk's p50 and p99."""
    lua = "" if body is None else f"wrk.method = 'POST'\nwrk.body = [==[{body.decode()}]==]\n"
    lua += "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in (h.split(": ") for h in headers))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(lua)
        script.flush()
        command = [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url,
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(out)
    figures = dict(re.findall(r"(Requests/sec:|50%|99%)\s+(\S+)", out))
    rate, latency = float(figures["Requests/sec:"]), f"p50 {figures['50%']} p99 {figures['99%']}"
    return rate, latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--profile", help="write a cProfile of the server here; its figures are then not to be quoted")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this needs wrk")
    cases = (
        ("listener alone", "/bare/noop/infer", BODY, (), False),
        ("JSON, door at once", "/v2/models/noop/infer", BODY, (), False),
        ("JSON, door later", "/v2/models/noop/infer", BODY, (), True),
        ("JSON, with a key", "/v2/models/noop/infer", BODY, ("secret",), False),
        ("health", "/v2/health/live", None, (), False),
    )
    context = multiprocessing.get_context("spawn")
    for title, path, body, keys, later in cases:
        here, there = context.Pipe()
        server = context.Process(target=serve, args=(there, keys, later, arguments.profile))
        server.start()
        try:
            url = f"http://127.0.0.1:{here.recv()}{path}"
            headers = [f"Authorization: Bearer {key}" for key in keys] + ["Content-Type: application/json"]
            wrk(url, 16, 1, body, headers)  # warm
            for connections in arguments.connections:
                here.send("usage")
                cpu_before, count_before = here.recv()
                rate, latency = wrk(url, connections, arguments.seconds, body, headers)
                here.send("usage")
                cpu, count = here.recv()
                per_request_us = (cpu - cpu_before) / (count - count_before) * 1e6
                print(
                    f"{title:20} c={connections:<3} {rate:9,.0f} req/s {per_request_us:6.2f} µs/req  {latency}",
                    flush=True,
                )
            here.send("stop")
            server.join(10)
        finally:
            if server.is_alive() and server.pid is not None:
                os.kill(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
