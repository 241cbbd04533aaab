from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running_server import ServerFactory

import penstock

CODE = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def one(x):
    return {"y": x}
"""
MOST_WATCHES = 1000
KINDS = health_pb2.HealthCheckResponse


@pytest.mark.parametrize("fronts", [1, 2])
def test_a_watcher_hears_of_loads_unloads_and_the_end(server: ServerFactory, tmp_path: Path, fronts: int) -> None:
    (tmp_path / "one.py").write_text(CODE)
    model = {"path": f"{tmp_path / 'one.py'}:one", "workers": 1, "warm_up": False}
    running = server({"one": model}, model_control="explicit", load_models=["one"], fronts=fronts)
    with grpc.insecure_channel(running.grpc) as channel, penstock.Client(running.http) as client:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="one"), timeout=60)
        whole = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == next(whole).status == KINDS.SERVING
        client.unload("one")
        while (heard := next(watch).status) != KINDS.SERVICE_UNKNOWN:
            assert heard == KINDS.NOT_SERVING
        client.load("one")
        while (heard := next(watch).status) != KINDS.SERVING:
            assert heard == KINDS.NOT_SERVING
        running.process.terminate()
        assert [item.status for item in watch] == [KINDS.NOT_SERVING]
        assert [item.status for item in whole][-1] == KINDS.NOT_SERVING


async def test_watches_beyond_what_a_server_holds_are_refused_and_room_is_given_back(
    server: ServerFactory, tmp_path: Path
) -> None:
    (tmp_path / "one.py").write_text(CODE)
    running = server({"one": {"path": f"{tmp_path / 'one.py'}:one", "workers": 1, "warm_up": False}}, api_key="secret")
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watches = [health.Watch(request, timeout=60) for _ in range(MOST_WATCHES)]
        for watch in watches:
            assert (await watch.read()).status == KINDS.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Watch(request, timeout=10).read()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await health.Check(request, timeout=10)).status == KINDS.SERVING  # a check costs nothing that stays
        for watch in watches[:10]:
            watch.cancel()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await health.Watch(request, timeout=10).read()
                    break
        running.process.terminate()
        assert (await watches[-1].read()).status == KINDS.NOT_SERVING
        assert await watches[-1].read() == grpc.aio.EOF
