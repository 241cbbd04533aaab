"""P2c: a server says that it is not ready while no worker of a model is there to compute, and that it is when one is."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from running_server import RunningServer, ServerFactory
from server_processes import until, workers
from tritonclient.grpc import service_pb2

MODEL = """
import os, time
import penstock


@penstock.model(inputs={"x": "f4[n, 1]"}, outputs={"y": "f4[n, 1]"})
class Triple:
    def load(self, context):
        while os.path.exists(__file__ + ".hold"):
            time.sleep(0.02)

    def predict(self, x):
        return {"y": x * 3}
"""


def status(server: RunningServer, path: str) -> int:
    try:
        with urllib.request.urlopen(server.http + path, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def everywhere(server: RunningServer, path: str) -> set[int]:
    """The statuses over several connections, which reach every front."""
    return {status(server, path) for _ in range(8)}


def grpc_ready(server: RunningServer) -> bool:
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=service_pb2.ModelReadyResponse.FromString,
        )
        return bool(call(service_pb2.ModelReadyRequest(name="triple"), timeout=10).ready)


def ask(server: RunningServer) -> list[float]:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [2.0]}
    body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 20_000_000}}).encode()
    request = urllib.request.Request(f"{server.http}/v2/models/triple/infer", body)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return list(json.loads(answer.read())["outputs"][0]["data"])


@pytest.mark.parametrize("fronts", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_without_workers_is_live_and_not_ready(
    server: ServerFactory, tmp_path: Path, fronts: int, number: signal.Signals
) -> None:
    file = tmp_path / "triple.py"
    file.write_text(MODEL)
    hold = Path(f"{file}.hold")
    running = server({"triple": {"path": f"{file}:Triple", "workers": 2}}, fronts=fronts)
    until(lambda: len(workers(running.pid)) == 2, 20, "both workers")
    assert everywhere(running, "/v2/health/ready") == {200}
    assert ask(running) == [6.0]

    hold.touch()
    for pid in workers(running.pid):
        os.kill(pid, number)
    until(lambda: everywhere(running, "/v2/health/ready") == {503}, 20, "not ready")
    assert everywhere(running, "/v2/models/triple/ready") != {200}
    assert not grpc_ready(running)
    assert everywhere(running, "/v2/health/live") == {200}

    hold.unlink()
    until(lambda: everywhere(running, "/v2/health/ready") == {200}, 20, "ready again")
    assert everywhere(running, "/v2/models/triple/ready") == {200}
    assert grpc_ready(running)
    assert ask(running) == [6.0]
