"""Real clients through the router's gRPC front to real servers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_front_harness import endpoint, router, router_process
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from penstock.fleet.routes import Table, Tenant
from penstock.fleet.spec import Requests

MODELS = """
import os
import time
import penstock

@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def double(x):
    return {"y": x * 2}

@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def slow(x):
    time.sleep(0.3)
    return {"y": x}

@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def counter(x):
    for number in range(3):
        yield {"y": x * number}
"""
X = np.arange(6, dtype="f4").reshape(2, 3)


def tensor(array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput("x", array.shape, "FP32")
    made.set_data_from_numpy(array)
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "functions.py"
    file.write_text(MODELS)
    return file


@pytest.fixture(scope="module")
def replica(shared_server: Callable[..., Any], models: Path) -> Any:
    return shared_server(
        {
            "double": f"{models}:double",
            "slow": {"path": f"{models}:slow", "workers": 1, "batch": False, "warm_up": False},
            "decoupled": {"path": f"{models}:counter", "warm_up": False},
        }
    )


async def test_tritons_client_works_as_with_a_server_alone(replica: Any) -> None:
    names = ("double", "slow", "decoupled")
    async with router(*(endpoint(name, replica.grpc) for name in names), endpoint("asleep", waking=True)) as front:
        await asyncio.to_thread(use, front.address)


def use(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("double") and client.is_model_ready("asleep")
        assert client.get_server_metadata().name == "penstock"
        index = {model.name: model.state for model in client.get_model_repository_index().models}
        assert index == dict.fromkeys(("asleep", "double", "slow", "decoupled"), "READY")
        for compression in (None, "gzip", "deflate"):
            got = client.infer("double", [tensor(X)], request_id="7", compression_algorithm=compression)
            np.testing.assert_array_equal(got.as_numpy("y"), X * 2)
            assert got.get_response().id == "7"
        assert [t.name for t in client.get_model_metadata("double").inputs] == ["x"]
        assert client.get_model_config("double").config.max_batch_size > 0
        assert client.get_inference_statistics("double").model_stats[0].inference_count >= 3
        for name, inputs, status in (
            ("nobody", [tensor(X)], "NOT_FOUND"),
            ("double", [], "INVALID_ARGUMENT"),
            ("decoupled", [tensor(X)], "UNIMPLEMENTED"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                client.infer(name, inputs)
            assert caught.value.status() == f"StatusCode.{status}"
        for call in (lambda: client.load_model("double"), lambda: client.unload_model("double")):
            with pytest.raises(InferenceServerException):
                call()
        with pytest.raises(InferenceServerException) as caught:
            client.infer("slow", [tensor(X)], client_timeout=0.1)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        stream(client)


def stream(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(20):
        client.async_stream_infer("double", [tensor(X * number)], request_id=str(number))
    got = [answers.get(timeout=20) for _ in range(20)]
    assert {result.get_response().id for result, error in got} == {str(number) for number in range(20)}
    client.stop_stream()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("decoupled", [tensor(X)], enable_empty_final_response=True)
    finals = []
    for _ in range(4):
        result, error = answers.get(timeout=20)
        assert error is None
        finals.append(result.get_response().parameters["triton_final_response"].bool_param)
    assert finals == [False, False, False, True]
    client.stop_stream()


async def test_health_of_the_router_needs_no_key_and_inference_does(replica: Any) -> None:
    tenants = [Tenant("acme", hashlib.sha256(b"secret").hexdigest(), rate=1e-3, burst=1)]
    async with router(endpoint("double", replica.grpc), tenants=tenants) as front:
        async with grpc.aio.insecure_channel(front.address) as channel:
            status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="double"))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        async with triton_aio.InferenceServerClient(front.address) as client:
            for headers, status in (
                (None, "UNAUTHENTICATED"),
                ({"authorization": "Bearer secret"}, None),
                ({"x-api-key": "secret"}, "RESOURCE_EXHAUSTED"),
            ):
                if status is None:
                    await client.infer("double", [tensor(X)], headers=headers)
                    continue
                with pytest.raises(InferenceServerException) as caught:
                    await client.infer("double", [tensor(X)], headers=headers)
                assert caught.value.status() == f"StatusCode.{status}"


async def test_a_body_of_100_mb_passes(replica: Any) -> None:
    array = np.arange(25_000_000, dtype="f4").reshape(1, -1)  # 100 MB
    async with (
        router(endpoint("double", replica.grpc)) as front,
        triton_aio.InferenceServerClient(front.address) as client,
    ):
        got = await client.infer("double", [tensor(array)], client_timeout=60)
        answer = got.as_numpy("y")
        assert answer.shape == array.shape
        np.testing.assert_array_equal(answer[:, ::1009], array[:, ::1009] * 2)


@pytest.mark.parametrize("idempotent", [True, pytest.param(False, marks=pytest.mark.chaos)])
async def test_a_replica_that_is_killed_loses_at_most_what_it_held(
    server: Callable[..., Any], models: Path, idempotent: bool
) -> None:
    """Calls in flight at the kill: sent again where that does no harm, else UNAVAILABLE. All others are answered."""
    one, other = (server({"double": f"{models}:double"}) for _ in range(2))
    requests = Requests(idempotent=idempotent, retry_budget=1.0)
    outcomes: list[str] = []
    killed = threading.Event()
    async with (
        router(endpoint("double", one.grpc, other.grpc, requests=requests)) as front,
        triton_aio.InferenceServerClient(front.address) as client,
    ):

        async def call_until(enough: Callable[[], bool]) -> None:
            while not enough():
                try:
                    got = await client.infer("double", [tensor(X)], client_timeout=20)
                    assert (got.as_numpy("y") == X * 2).all()
                    outcomes.append("OK")
                except InferenceServerException as error:
                    outcomes.append(str(error.status()))

        def enough() -> bool:
            if len(outcomes) >= 200 and not killed.is_set():
                killed.set()
                os.kill(one.pid, signal.SIGKILL)
            return len(outcomes) >= 800

        await asyncio.gather(*(call_until(enough) for _ in range(8)))
    lost = [outcome for outcome in outcomes if outcome != "OK"]
    assert lost == [] if idempotent else set(lost) <= {"StatusCode.UNAVAILABLE"} and len(lost) <= 8


@pytest.mark.parametrize("count", [4000, pytest.param(100_000, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
async def test_distinct_bad_names_leave_memory_flat(replica: Any, count: int, figure: Callable[..., None]) -> None:
    """Names of models, methods, endpoints and keys that nobody knows."""

    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    async def bad(channel: grpc.aio.Channel, number: int) -> None:
        infer, name = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), f"nobody-{number}"
        strange = channel.unary_unary(f"/any.Service/Method{number}")
        calls: tuple[Callable[[], Any], ...] = (
            lambda: infer(b"\x0a%c%b" % (len(name), name.encode()), timeout=30),
            lambda: infer(b"", metadata=(("penstock-endpoint", name),), timeout=30),
            lambda: infer(b"", metadata=((f"key-{number}", "v"), ("x-api-key", name)), timeout=30),
            lambda: strange(b"", metadata=(("penstock-endpoint", "double"),) if number % 8 == 3 else (), timeout=30),
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await calls[number % 4]()

    async def send(address: str, first: int, count: int) -> None:
        for block in range(first, first + count, 1000):
            # A client's channel keeps something of each method until it is closed.
            async with grpc.aio.insecure_channel(address) as channel:
                for start in range(block, block + 1000, 20):
                    await asyncio.gather(*(bad(channel, number) for number in range(start, start + 20)))

    async with router(endpoint("double", replica.grpc)) as front:
        await send(front.address, 0, 4000)
        before = resident_kb()
        await send(front.address, 4000, count)
        grown = resident_kb() - before
        figure("P13a", f"gRPC router: growth with {count:,} distinct bad names", grown / 1024, "MiB", goal="flat")
        # A channel keeps up to 1 MiB of methods until it gives way. 60 bytes of each of 100,000 names would be this.
        assert grown < 6000, f"{grown} KiB more"
        assert len(front.front._channels) == 1


@pytest.mark.parametrize("announced", [pytest.param(True, marks=pytest.mark.chaos), False])
async def test_a_replica_that_stops_loses_nothing(server: Callable[..., Any], models: Path, announced: bool) -> None:
    """As a rolling update does it; and as somebody's SIGTERM does it, with nobody told."""
    one, other = (server({"double": f"{models}:double"}) for _ in range(2))
    outcomes: list[str] = []
    under_way = asyncio.Event()
    async with (
        router(endpoint("double", one.grpc, other.grpc)) as front,
        triton_aio.InferenceServerClient(front.address) as client,
    ):

        async def call_until(enough: int) -> None:
            while len(outcomes) < enough:
                try:
                    await client.infer("double", [tensor(X)], client_timeout=20)
                    outcomes.append("OK")
                except InferenceServerException as error:
                    outcomes.append(f"{error.status()} {error.message()}")
                if len(outcomes) >= 150:
                    under_way.set()

        async def stop() -> None:
            await under_way.wait()
            if announced:
                front.follow(endpoint("double", other.grpc))
            os.kill(one.pid, signal.SIGTERM)
            await asyncio.to_thread(one.process.wait, 30)

        await asyncio.gather(stop(), *(call_until(800) for _ in range(8)))
    assert [outcome for outcome in outcomes if outcome != "OK"] == []


async def test_a_router_process_serves_from_its_cache_and_counts_what_it_refuses(replica: Any, tmp_path: Path) -> None:
    table = Table(1, (endpoint("double", replica.grpc),))
    async with router_process(tmp_path, table) as (http, address, _):
        async with triton_aio.InferenceServerClient(address) as client:
            for _ in range(3):
                got = await client.infer("double", [tensor(X)], client_timeout=20)
                assert (got.as_numpy("y") == X * 2).all()
            with pytest.raises(InferenceServerException):
                await client.infer("nobody", [tensor(X)])
        async with aiohttp.ClientSession() as session, session.get(f"http://{http}/metrics") as answer:
            metrics = await answer.text()
    assert 'penstock_router_errors_total{deployment="",error="NotFound"} 1' in metrics
    assert 'penstock_router_requests_total{deployment="double",revision="7",status="2xx"} 3' in metrics
