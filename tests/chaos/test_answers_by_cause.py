"""One fixed table of answers, over every path (P4c): the status says whose fault it was and what to do about it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import until

MODELS = """
import os, time
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}}


def act(x):
    if x[0] == 500:
        raise ValueError("the model has a bug")
    if x[0] == 503:
        os._exit(1)
    time.sleep(float(x[0] % 1))
    return {"y": x * 3}


@penstock.model(**PLAIN, batch=False)
def m(x):
    return act(x)


@penstock.model(**PLAIN, batch=False)
def stream(x):
    yield act(x)
"""
KEY = "the-key"
LIMIT = 100_000
Factory = Callable[..., Any]


def v2(value: float, timeout_s: float | None) -> Any:
    parameters = {} if timeout_s is None else {"parameters": {"timeout": round(timeout_s * 1e6)}}
    return {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [value]}], **parameters}


# Path, and the body that asks it for one number. All take the header with the deadline.
PATHS: dict[str, tuple[str, Callable[[float, float | None], Any]]] = {
    "V2": ("/v2/models/{m}/infer", v2),
    "V1": ("/v1/models/{m}:predict", lambda value, _: {"instances": [value]}),
    "predict": ("/predict/{m}", lambda value, _: {"x": [value]}),
    "generate": ("/v2/models/{m}/generate", lambda value, _: {"x": [value]}),
    "generate_stream": ("/v2/models/{m}/generate_stream", lambda value, _: {"x": [value]}),
    "infer_stream": ("/v2/models/{m}/infer_stream", v2),
}
STREAMS = {"generate_stream", "infer_stream"}
GRPC = {
    200: grpc.StatusCode.OK, 400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED, 500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE, 504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip


@pytest.fixture(scope="module")
def running(shared_server: Factory, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    (folder / "models.py").write_text(MODELS)
    table: dict[str, object] = {"workers": 1, "warm_up": False, "max_queue": 1}
    models = {name: {"path": f"{folder}/models.py:{name}", **table} for name in ("m", "stream")}
    return shared_server(models, api_key=KEY, max_body_bytes=LIMIT)


def ask(
    running: Any, path: str, value: float, *, model: str = "", key: str = KEY, timeout_s: float | None = None,
    body: bytes | None = None,
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    address, make = PATHS[path]
    model = model or ("stream" if path in STREAMS else "m")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    if timeout_s is not None:
        headers["Penstock-Timeout-Ms"] = f"{timeout_s * 1e3:g}"
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=30)
    try:
        sent = json.dumps(make(value, timeout_s)).encode() if body is None else body
        connection.request("POST", address.format(m=model), sent, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.headers.items()}, answer.read()
    finally:
        connection.close()


def ask_grpc(
    running: Any, value: float, *, model: str = "m", key: str = KEY, timeout_s: float | None = None, size: int = 1
) -> tuple[grpc.StatusCode, dict[str, str]]:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP64", shape=[size]).contents.fp64_contents.extend([value] * size)
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = round(timeout_s * 1e6)
    with grpc.insecure_channel(running.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        try:
            _, call = stub.ModelInfer.with_call(request, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            return error.code(), dict(error.trailing_metadata() or ())
        return call.code(), dict(call.trailing_metadata() or ())


@contextlib.contextmanager
def full(running: Any, model: str) -> Iterator[None]:
    """One request at work for 0.9 s and one that waits: no room for a third."""
    path = "infer_stream" if model == "stream" else "V2"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, running, path, 1.9)]
        until(lambda: (gauge(running, "requests_in_flight", model), gauge(running, "requests_queued", model)) == (1, 0))
        held.append(pool.submit(ask, running, path, 1.0))
        until(lambda: gauge(running, "requests_queued", model) == 1)
        yield
        assert {future.result()[0] for future in held} == {200}


def metrics(running: Any) -> str:
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=20)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def gauge(running: Any, name: str, model: str) -> int:
    found = re.search(rf'^penstock_{name}{{model="{model}",version="1"}} (\d+)', metrics(running), re.M)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("path", PATHS)
def test_each_cause_has_its_status_over_http(running: Any, path: str) -> None:
    model = "stream" if path in STREAMS else "m"
    assert ask(running, path, 2.0)[0] == 200
    status, headers, _ = ask(running, path, 2.0, key="another")
    assert status == 401 and headers["www-authenticate"] == "Bearer"
    assert ask(running, path, 2.0, model="nobody")[0] == 404
    assert ask(running, path, 2.0, body=b"{no json")[0] == 400
    assert ask(running, path, 2.0, body=b'{"x": "' + b"x" * LIMIT)[0] == 413
    status, headers, text = ask(running, path, 500.0)
    assert (status, headers["penstock-error"]) == (500, "ServableError") and b"the model has a bug" in text
    status, headers, _ = ask(running, path, 1.6, timeout_s=0.1)
    assert (status, headers["penstock-error"]) == (504, "DeadlineExceeded")
    until(lambda: gauge(running, "requests_in_flight", model) == 0)
    with full(running, model):
        status, headers, _ = ask(running, path, 1.0)
        assert (status, headers["penstock-error"]) == (503, "Overloaded")
        assert int(headers["retry-after"]) >= 1


def test_each_cause_has_its_code_over_grpc(running: Any) -> None:
    assert ask_grpc(running, 2.0)[0] is GRPC[200]
    assert ask_grpc(running, 2.0, key="another")[0] is GRPC[401]
    assert ask_grpc(running, 2.0, model="nobody")[0] is GRPC[404]
    assert ask_grpc(running, 2.0, size=0)[0] is GRPC[400] or ask_grpc(running, 2.0, timeout_s=-1.0)[0] is GRPC[400]
    assert ask_grpc(running, 2.0, size=LIMIT)[0] is GRPC[413]
    assert ask_grpc(running, 500.0)[0] is GRPC[500]
    assert ask_grpc(running, 1.6, timeout_s=0.1)[0] is GRPC[504]
    until(lambda: gauge(running, "requests_in_flight", "m") == 0)
    with full(running, "m"):
        code, trailers = ask_grpc(running, 1.0)
        assert code is GRPC[503]
        assert float(trailers["retry-after"]) >= 1 and int(trailers["grpc-retry-pushback-ms"]) >= 1000


def test_worker_that_dies_with_a_request_is_503_on_every_path(server: Factory, tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    names = [*(path.lower() for path in PATHS), "grpc"]
    models = {
        name: {"path": f"{tmp_path}/models.py:{'stream' if 'stream' in name else 'm'}", "workers": 1, "warm_up": False}
        for name in names
    }
    running = server(models)
    for path in PATHS:
        status, headers, _ = ask(running, path, 503.0, model=path.lower())
        assert (status, headers["penstock-error"]) == (503, "WorkerLost"), path
        assert int(headers["retry-after"]) >= 1
    assert ask_grpc(running, 503.0, model="grpc")[0] is GRPC[503]


def test_caller_who_left_is_counted_as_such(running: Any) -> None:
    body = json.dumps(v2(1.7, None)).encode()
    before = cancelled(running)
    with socket.create_connection(tuple(running.http.removeprefix("http://").split(":"))) as client:
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        until(lambda: gauge(running, "requests_in_flight", "m") == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: cancelled(running) == before + 1)


def cancelled(running: Any) -> int:
    found = re.search(
        r'^penstock_requests_total{model="m",outcome="cancelled",version="1"} (\d+)', metrics(running), re.M
    )
    return int(found[1]) if found else 0


def test_model_that_is_being_loaded_is_not_ready_yet(server: Factory, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(2)\n" + MODELS)
    table = {"path": f"{tmp_path}/slow.py:m", "warm_up": False}
    running = server({"slow": table}, model_control="explicit")
    address = running.http.removeprefix("http://")

    def load() -> int:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("POST", "/v2/repository/models/slow/load")
        return connection.getresponse().status

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        seen = set()
        while not loading.done():
            status, headers, _ = ask(running, "V2", 1.0, model="slow")
            seen.add((status, headers.get("penstock-error"), headers.get("retry-after")))
            time.sleep(0.05)
        assert loading.result() == 200
    assert (503, "NotReady", "1") in seen
    assert seen <= {(503, "NotReady", "1"), (404, "NotFound", None), (200, None, None)}
    assert ask(running, "V2", 1.0, model="slow")[0] == 200
