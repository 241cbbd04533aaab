"""When the time of grace is over, what still runs is told so: each stream ends with its protocol's error event."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from language_streams import SURFACES, Read, becomes, read
from running_server import ServerFactory
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.timeout(120), pytest.mark.alone]
BOTH = pytest.mark.parametrize("fronts", [pytest.param(1, marks=pytest.mark.chaos), 2])

COUNTS = """
import time
import penstock


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"}, batch=False)
def counts(x):
    while True:
        time.sleep(0.02)
        yield {"y": x}


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"})
def sleeps(x):
    time.sleep(float(x[0]))
    return {"y": x}
"""


@BOTH
async def test_every_stream_that_outlasts_the_grace_ends_with_an_error_event(
    server: ServerFactory, llmecho: Path, tmp_path: Path, fronts: int
) -> None:
    (tmp_path / "models.py").write_text(COUNTS)
    running = server(
        {
            "echo": {"path": str(llmecho), "options": {"delay_s": 0.02, "context_tokens": 1 << 16}},
            "counts": {"path": f"{tmp_path}/models.py:counts", "workers": 1, "warm_up": False},
        },
        grace_s=2.0,
        fronts=fronts,
    )
    found = [Read(surface) for surface in SURFACES for _ in range(2)]
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=running.http, timeout=30, limits=limits) as client:
        tasks = [asyncio.create_task(read(client, one.surface, one)) for one in found]
        tensors = asyncio.create_task(_numbers(client))
        await becomes(lambda: all(len(one.events) > 5 for one in found), 20, "all stream")
        running.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        took = time.monotonic() - told
        last = await tensors
    for one in found:
        assert not one.broke_off and not one.says_whole, (one.surface, one.broke_off, one.events[-1:])
        assert one.error, (one.surface, one.events[-1:])
        assert "grace" in str(one.error), one.error
    assert "grace" in last and "WorkerLost" in last
    assert 1.0 < took < 2.5, "near its end, and not before it"
    assert running.process.wait(15) == 0


async def _numbers(client: httpx.AsyncClient) -> str:
    """The last event of a stream of tensors."""
    last = ""
    async with client.stream("POST", "/v2/models/counts/generate_stream", json={"x": [1.0]}) as answer:
        async for line in answer.aiter_lines():
            last = line or last
    return last


@BOTH
async def test_requests_that_outlast_the_grace_are_answered_too(
    server: ServerFactory, llmecho: Path, tmp_path: Path, fronts: int
) -> None:
    (tmp_path / "models.py").write_text(COUNTS)
    running = server(
        {
            "echo": {"path": str(llmecho), "options": {"delay_s": 0.02, "max_running": 1, "context_tokens": 1 << 16}},
            "sleeps": {"path": f"{tmp_path}/models.py:sleeps", "workers": 1, "warm_up": False},
        },
        grace_s=1.0,
        fronts=fronts,
    )
    tensor = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [600.0]}]}
    asks = [
        *((path, {**body, "stream": False}) for path, body in SURFACES.values() if path.startswith("/v1/")),
        ("/v2/models/echo/generate", SURFACES["generate"][1]),
        ("/v2/models/sleeps/infer", tensor),
        ("/v2/models/sleeps/infer", tensor),
    ]
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=running.http, timeout=30, limits=limits) as client:
        tasks = [asyncio.create_task(client.post(path, json=body)) for path, body in asks]
        metrics = ""
        while (
            'in_flight{model="sleeps",version="1"} 2' not in metrics
            or 'running{model="echo",version="1"} 1' not in metrics
        ):
            metrics = (await client.get("/metrics")).text
        running.process.send_signal(signal.SIGTERM)
        answers = await asyncio.wait_for(asyncio.gather(*tasks), 20)
    for (path, _), answer in zip(asks, answers, strict=True):
        assert answer.status_code == 503 and "grace" in answer.text, (path, answer.status_code, answer.text)
        assert answer.headers["penstock-error"] == "WorkerLost" and answer.headers["retry-after"], path
    assert running.process.wait(15) == 0


@BOTH
async def test_calls_over_grpc_that_outlast_the_grace_end_with_unavailable(
    server: ServerFactory, tmp_path: Path, fronts: int
) -> None:
    (tmp_path / "models.py").write_text(COUNTS)
    table = {
        name: {"path": f"{tmp_path}/models.py:{name}", "workers": 1, "warm_up": False} for name in ("counts", "sleeps")
    }
    running = server(table, grace_s=1.0, fronts=fronts)
    x = triton.InferInput("x", [1], "FP64")
    x.set_data_from_numpy(np.array([600.0]))
    rpc = triton.InferenceServerClient(running.grpc)
    came = 0

    async def requests():  # type: ignore[no-untyped-def]
        yield {"model_name": "counts", "inputs": [x]}
        await asyncio.sleep(60)

    async def stream() -> str:
        nonlocal came
        try:
            async for _, error in rpc.stream_infer(requests()):
                if error is not None:
                    return f"in the stream: {error}"
                came += 1
        except (InferenceServerException, grpc.RpcError) as error:
            return str(error)
        return "a clean end"

    async def call() -> str:
        try:
            await rpc.infer("sleeps", [x])
        except InferenceServerException as error:
            return str(error)
        return "an answer"

    tasks = [asyncio.create_task(stream()), asyncio.create_task(call())]
    await becomes(lambda: came > 3, 20, "it streams")
    async with httpx.AsyncClient(base_url=running.http) as client:
        while 'in_flight{model="sleeps",version="1"} 1' not in (await client.get("/metrics")).text:
            pass
    running.process.send_signal(signal.SIGTERM)
    ends = await asyncio.wait_for(asyncio.gather(*tasks), 20)
    await rpc.close()
    assert all("UNAVAILABLE" in one for one in ends), ends
    assert running.process.wait(15) == 0
