"""F14: the stop signals, at every moment of a server's life. It ends within its stated bound, leaves nothing behind, and
what it had accepted is answered."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import server_processes as processes
import tritonclient.grpc.aio as triton
from running_server import write_config
from tritonclient.utils import InferenceServerException
from watched_processes import family

import penstock
from penstock.core.errors import PenstockError

pytestmark = pytest.mark.alone

MODELS = """
import time
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}}


@penstock.model(**PLAIN)
def slow(x):
    time.sleep(float(x[0]))
    return {"y": x}


@penstock.model(**PLAIN, batch=False)
def stream(x):
    for item in range(5):
        time.sleep(float(x[0]))
        yield {"y": x + item}


class Loads:
    inputs, outputs = {"x": "f8[n]"}, {"y": "f8[n]"}

    def load(self, artifact):
        print("loading", flush=True)
        time.sleep(600)

    def predict(self, inputs):
        return inputs


@penstock.model(**PLAIN)
def warms(x):
    print("warming", flush=True)
    time.sleep(600)
    return {"y": x}
"""
Start = Callable[..., Any]


@pytest.fixture
def start(server: Callable[..., Any], tmp_path: Path) -> Start:
    (tmp_path / "models.py").write_text(MODELS)
    names = ("slow", "stream")
    table = {name: {"path": f"{tmp_path}/models.py:{name}", "workers": 1, "warm_up": False} for name in names}
    return lambda **options: server(table, **options)


def body(value: float) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [value]}]}).encode()


async def kept(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, sent: bytes = b""
) -> tuple[bytes, bytes]:
    method = "POST" if sent else "GET"
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head, await reader.readexactly(size)


async def in_flight(running: Any, count: int) -> None:
    """Waits until so many requests of the slow model have been accepted and not answered."""
    async with asyncio.timeout(10):
        while True:
            _, text = await ask(*await kept(running.http), "/metrics")
            if re.search(rb'^penstock_requests_in_flight{model="slow",.*} %d' % count, text, re.M):
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.chaos) for other in (signal.SIGINT, signal.SIGHUP))],
)
async def test_lame_duck_serves_everybody_and_closes_only_what_it_said_it_would(start: Start, number: int) -> None:
    """At once not ready, still serving old and new connections, each answer says `close`; idle ones stay until the end of
    the window, and what is in flight then is finished."""
    lame_duck_s = 1.0
    running = start(lame_duck_s=lame_duck_s, grace_s=10, fronts=2 if number == signal.SIGTERM else 1)
    pids = family(running.pid)
    idle, busy = await kept(running.http), await kept(running.http)
    await ask(*idle, "/v2/health/live")
    await ask(*busy, "/v2/health/live")
    rpc = triton.InferenceServerClient(running.grpc)
    x = triton.InferInput("x", [1], "FP64")
    x.set_data_from_numpy(np.array([1.6]))
    try:
        in_flight = asyncio.create_task(rpc.infer("slow", [x]))
        async with penstock.AsyncClient(running.http, retries=0) as client:
            items = client.stream("stream", {"x": np.array([0.3])})
            first = await anext(items)
            processes.kill([running.pid], number)
            told = time.monotonic()
            status = b"200"
            while b" 200 " in status[:15] or status == b"200":
                fresh = await kept(running.http)
                status, _ = await ask(*fresh, "/v2/health/ready")
                assert time.monotonic() - told < 0.9, "still ready"
            head, _ = await ask(*busy, "/v2/health/live")
            assert b" 200 " in head
            assert b"\r\nconnection: close" in head.lower()
            assert await busy[0].read() == b"", "closed after the answer that said so"
            with pytest.raises(TimeoutError):  # nobody closes an idle connection inside the window
                async with asyncio.timeout(max(0.05, told + 0.8 * lame_duck_s - time.monotonic())):
                    await idle[0].read(1)
            assert await idle[0].read() == b""
            assert time.monotonic() - told >= lame_duck_s - 0.1
            rest = [item async for item in items]
            assert [float(np.asarray(one["y"]).ravel()[0]) for one in (first, *rest)] == [0.3, 1.3, 2.3, 3.3, 4.3]
        assert (await in_flight).as_numpy("y").tolist() == [1.6]
    finally:
        await rpc.close()
    assert running.process.wait(15) == 0
    assert processes.alive(pids) == []


async def test_no_pipelined_answer_is_followed_by_a_close_that_it_did_not_announce(start: Start) -> None:
    """Two requests on one connection, the second answered first: its answer lies ready, without `close`, when the signal
    comes. The connection must outlive it, because the client may be sending the next one."""
    running = start(lame_duck_s=3.0)
    reader, writer = await kept(running.http)
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body(1.5))}\r\n\r\n".encode()
    writer.write(head + body(1.5) + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    await in_flight(running, 1)  # both came in one piece
    processes.kill([running.pid], signal.SIGTERM)
    processes.until(lambda: '"stopping"' in running.log.read_text(), 5, "the signal is heard")
    await in_flight(running, 1)
    announced = False
    for _ in range(2):
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.strip().split(b"\r\n")[1:])
        await reader.readexactly(int(fields[b"content-length"]))
        announced = fields.get(b"connection") == b"close"
    if not announced:
        head, _ = await ask(reader, writer, "/v2/health/live")
        assert b"connection: close" in head.lower()
    assert await reader.read() == b""


async def test_grace_ends_what_does_not_and_the_bound_holds(start: Start) -> None:
    running = start(grace_s=1.0, lame_duck_s=0.5)
    pids = family(running.pid)
    async with penstock.AsyncClient(running.http, retries=0, timeout_s=30) as client:
        stuck = asyncio.create_task(client.infer("slow", {"x": np.array([600.0])}))
        await in_flight(running, 1)
        processes.kill([running.pid], signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(PenstockError):
            await stuck
        code = await asyncio.to_thread(running.process.wait, 15)
        took = time.monotonic() - began
    assert code == 0
    assert took < 0.5 + 1.0 + 2.0, "lame duck, grace, and the time to end processes"
    assert processes.alive(pids) == []


async def test_second_signal_ends_at_once(start: Start) -> None:
    running = start(grace_s=60.0, lame_duck_s=60.0, fronts=2)
    pids = family(running.pid)
    processes.kill([running.pid], signal.SIGTERM)
    processes.until(lambda: '"stopping"' in running.log.read_text(), 5, "the first signal is heard")
    processes.kill([running.pid], signal.SIGHUP)  # a terminal that goes away says so more than once: never in a hurry
    # It is handled in the next turn of the loop through which these answers come.
    for _ in range(2):
        head, _ = await ask(*await kept(running.http), "/v2/models/slow/infer", body(0.0))
        assert b" 200 " in head
    assert running.process.poll() is None
    processes.kill([running.pid], signal.SIGTERM)
    began = time.monotonic()
    assert running.process.wait(5) == 128 + signal.SIGTERM
    processes.until(lambda: not processes.alive(pids), 5, "workers and fronts end too")
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("when", ["loading", "warming"])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.chaos)])
def test_stop_while_a_model_loads_or_warms_up(tmp_path: Path, when: str, number: int) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    name = "Loads" if when == "loading" else "warms"
    write_config(tmp_path / "penstock.toml", {"m": f"{tmp_path}/models.py:{name}"}, {"http_port": 0, "grpc_port": 0})
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", "serve", "--config", str(tmp_path / "penstock.toml")],
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        processes.until(lambda: f'"{when}"' in log.read_text(), 20, f"user code is {when}")
        pids = family(process.pid)
        assert len(pids) == 2
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3.0
        assert processes.alive(pids) == []
    finally:
        process.kill()
        process.wait()


async def test_every_call_over_grpc_gets_an_end_while_the_server_stops(start: Start) -> None:
    """Callers that know no other server go on calling over their connections. grpcio fails the calls that are on their
    way when it stops with CANCELLED, and offers no other way (see `grpc_connection_age_s` for callers who have one)."""
    running = start(lame_duck_s=0.3, grace_s=5.0)
    rpc = triton.InferenceServerClient(running.grpc)
    x = triton.InferInput("x", [1], "FP64")
    x.set_data_from_numpy(np.array([0.001]))
    ended: list[str] = []
    under_way = asyncio.Event()

    async def call() -> None:
        while ended.count("UNAVAILABLE") <= 40:
            try:
                await rpc.infer("slow", [x], client_timeout=5)
                ended.append("ok")
                if ended.count("ok") > 20:
                    under_way.set()
            except InferenceServerException as error:
                ended.append(str(error.status()).removeprefix("StatusCode."))

    calls = [asyncio.create_task(call()) for _ in range(8)]
    await asyncio.wait_for(under_way.wait(), 20)
    processes.kill([running.pid], signal.SIGTERM)
    await asyncio.gather(*calls)
    await rpc.close()
    assert running.process.wait(10) == 0
    assert set(ended) <= {"ok", "UNAVAILABLE", "CANCELLED"}
    assert ended.count("CANCELLED") <= 8, "no more than were on their way"
