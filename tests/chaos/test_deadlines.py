"""One deadline covers all that happens to a request (P1b), and what a slot holds is held until it truly ends (P1c)."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import http2_frames as h2
import pytest
from tritonclient.grpc import service_pb2
from waiting import until

pytestmark = pytest.mark.alone

MODELS = '''
import os, socket, threading, time
import numpy as np
import penstock

PLAIN = {"inputs": {"x": "f8[n]"}, "outputs": {"y": "f8[n]"}}
running, most, lock = 0, 0, threading.Lock()


@penstock.model(**PLAIN, batch=False)
def sleeps(x):
    """As many seconds as it is given; the most that ran at once in this process come back."""
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    time.sleep(float(x[0]))
    with lock:
        running -= 1
    return {"y": np.array([most])}


@penstock.model(**PLAIN)
def waits_for_more(x):
    return {"y": x * 3}


@penstock.model(**PLAIN, batch=False)
def asks(x):
    """Asks a server that never answers, without a timeout of its own."""
    with socket.create_connection(("127.0.0.1", int(x[0]))) as other:
        other.recv(1)
    return {"y": x}


@penstock.model(**PLAIN)
def negative_is_bad(x):
    if (x < 0).any():
        raise ValueError("a bad row")
    return {"y": x * 3}


@penstock.model(**PLAIN)
async def negative_is_bad_too(x):
    return negative_is_bad(x)


@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[m]", "pid": "i8[1]"})
def large(x):
    """100 KB an item, for ever."""
    number = 0
    while True:
        number += 1
        yield {"y": np.full(12_500, float(number)), "pid": np.array([os.getpid()])}


@penstock.model(**PLAIN)
def hangs(x):
    """A stream that stops in the middle, for numbers above 0."""
    yield {"y": x}
    if x[0] > 0:
        time.sleep(600)
'''
QUIET: dict[str, object] = {"warm_up": False, "workers": 1}
Factory = Callable[..., Any]


@pytest.fixture
def started(server: Factory, tmp_path: Path) -> Callable[..., Any]:
    """Starts a server with the named models; `m=OPTIONS` for more than the usual."""
    (tmp_path / "models.py").write_text(MODELS)

    def start(*names: str, options: dict[str, object] | None = None, **server_options: object) -> Any:
        table = {**QUIET, **(options or {})}
        return server({name: {"path": f"{tmp_path}/models.py:{name}", **table} for name in names}, **server_options)

    return start


def address(running: Any) -> tuple[str, int]:
    host, port = running.http.removeprefix("http://").split(":")
    return host, int(port)


def body_of(values: list[float], timeout_s: float | None = None) -> bytes:
    tensor = {"name": "x", "datatype": "FP64", "shape": [len(values)], "data": values}
    parameters = {} if timeout_s is None else {"parameters": {"timeout": round(timeout_s * 1e6)}}
    return json.dumps({"inputs": [tensor], **parameters}).encode()


def ask(
    running: Any, model: str, values: list[float], timeout_s: float | None = None, header_s: float | None = None,
    path: str = "infer",
) -> tuple[int, Any, float]:  # fmt: skip
    """Status, body and seconds of one request over a new connection."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(*address(running), timeout=60)
    headers = {} if header_s is None else {"Penstock-Timeout-Ms": f"{header_s * 1e3:g}"}
    try:
        connection.request("POST", f"/v2/models/{model}/{path}", body_of(values, timeout_s), headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(text) if path == "infer" else text, time.monotonic() - began


def gauge(running: Any, name: str, model: str) -> int:
    connection = http.client.HTTPConnection(*address(running), timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf'^penstock_{name}{{model="{model}",version="1"}} (\d+)', text, re.M)
    assert found is not None
    return int(found[1])


def ended(running: Any, model: str, outcome: str) -> int:
    """How many requests have ended so."""
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    series = [line for line in text.splitlines() if line.startswith("penstock_requests_total{")]
    wanted = (f'model="{model}"', f'outcome="{outcome}"')
    return sum(int(float(line.split()[1])) for line in series if all(label in line for label in wanted))


def answer_over_grpc(running: Any, model: str, value: float, timeout: bytes) -> bytes:
    """All that the server sends until it ends the call. Made by hand: grpcio's client ends a call by its own clock, and
    nobody would see what the server does at its deadline."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP64", shape=[1]).contents.fp64_contents.append(value)
    head = h2.request(b"/inference.GRPCInferenceService/ModelInfer", (b"grpc-timeout", timeout))
    sent = h2.message(request.SerializeToString())
    host, port = running.grpc.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as client, client.makefile("rb") as received:
        client.sendall(
            h2.BEGIN + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, head) + h2.frame(h2.DATA, h2.END_STREAM, 1, sent)
        )
        data = b""
        while True:
            start = received.read(9)
            payload = received.read(int.from_bytes(start[:3], "big"))
            if int.from_bytes(start[5:], "big") == 1:
                data += payload
                if start[3] == h2.RST_STREAM or (start[3] in (h2.HEADERS, h2.DATA) and start[4] & h2.END_STREAM):
                    return data


@pytest.mark.parametrize("asks", [20, pytest.param(1000, marks=[pytest.mark.chaos, pytest.mark.timeout(400)])])
def test_model_that_computes_past_the_deadline_is_answered_for_at_the_deadline(
    started: Any, figure: Any, asks: int
) -> None:
    running = started("sleeps", options={"workers": 4})
    late: list[float] = []
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = pool.map(
            lambda index: ask(running, "sleeps", [0.15], header_s=0.05 + 0.001 * (index % 20)), range(asks)
        )
        for index, (status, _, seconds) in enumerate(results):
            assert status in (504, 503), "503 when it was clear beforehand"
            if status == 504:
                late.append(seconds - 0.05 - 0.001 * (index % 20))
    late.sort()
    value = late[int(0.99 * (len(late) - 1))]
    figure("P1b", "504 of a computing model after its deadline, p99", round(value * 1e3, 1), "ms", goal="≤ 50 ms")
    assert late[0] > -0.005 and late[len(late) // 2] < 0.1


@pytest.mark.parametrize("how", ["header", "parameter", "grpc"])
def test_deadline_may_be_told_in_three_ways_and_holds_in_the_queue(started: Any, how: str) -> None:
    running = started("sleeps")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ask, running, "sleeps", [0.6])
        until(lambda: gauge(running, "requests_in_flight", "sleeps") == 1)
        began = time.monotonic()
        if how == "grpc":
            assert b"grpc-status\x014" in answer_over_grpc(running, "sleeps", 0.0, b"100m")
        else:
            told = {"timeout_s": 0.1} if how == "parameter" else {"header_s": 0.1}
            assert ask(running, "sleeps", [0.0], **told)[0] == 504
        assert 0.09 < time.monotonic() - began < 0.45
        until(lambda: gauge(running, "requests_queued", "sleeps") == 0, 0.3)
        assert busy.result()[0] == 200
    assert ask(running, "sleeps", [0.0])[0] == 200
    given_up = ["deadline", "cancelled"] if how == "grpc" else ["deadline"]  # grpcio's server ends calls by itself too
    assert sum(ended(running, "sleeps", outcome) for outcome in given_up) == 1
    assert ended(running, "sleeps", "success") == 2, "what waited was never computed"


def test_waiting_for_a_fuller_batch_counts(started: Any) -> None:
    running = started("waits_for_more", options={"batch_delay_s": 1.0})
    status, _, seconds = ask(running, "waits_for_more", [1.0], header_s=0.2)
    assert status == 504 and 0.19 < seconds < 0.7


def test_slow_upload_counts(started: Any) -> None:
    running = started("sleeps")
    for body, head in ((body_of([0.0], 0.3), ""), (body_of([0.0]), "Penstock-Timeout-Ms: 300\r\n")):
        with socket.create_connection(address(running)) as client:
            client.settimeout(10)
            head = f"POST /v2/models/sleeps/infer HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[:10])
            time.sleep(0.4)  # the caller's own slowness
            client.sendall(body[10:])
            assert client.recv(65536).startswith(b"HTTP/1.1 504")
    with socket.create_connection(address(running)) as client:  # and one that never ends
        client.settimeout(10)
        client.sendall(
            b"POST /v2/models/sleeps/infer HTTP/1.1\r\nHost: x\r\nPenstock-Timeout-Ms: 100\r\nContent-Length: 99\r\n\r\n{"
        )
        began = time.monotonic()
        assert client.recv(65536).startswith(b"HTTP/1.1 504")
        assert time.monotonic() - began < 3.0


def test_reader_who_takes_nothing_is_cut_at_the_deadline_and_costs_no_worker(started: Any) -> None:
    """A stream of 100 KB items without end, of which its reader takes none. Its worker waits, and was once killed for it
    as stuck, `hang_s` after the deadline, with all that it held."""
    running = started("large", options={"hang_s": 0.5, "timeout_s": 1.0})
    body = json.dumps({"x": [1.0]}).encode()
    head = "POST /v2/models/large/generate_stream HTTP/1.1\r\nHost: x\r\nPenstock-Timeout-Ms: 1000\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address(running))
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: gauge(running, "requests_in_flight", "large") == 1)
        until(lambda: gauge(running, "requests_in_flight", "large") == 0, 5.0)
        data = b""
        client.settimeout(10)
        try:
            while piece := client.recv(1 << 20):
                data += piece
        except ConnectionError:
            pass  # cut: what had filled the buffers cannot be ended otherwise
        assert not data.endswith(b"0\r\n\r\n") or b'"error"' in data, "never a clean end"
    time.sleep(1.0)  # in which it would be found stuck
    text = running.log.read_text() + "".join(running.lines)
    assert "worker_stuck" not in text and "worker_ended" not in text


def test_stream_that_hangs_is_answered_at_its_deadline_and_refused_after_two_workers(started: Any) -> None:
    running = started("hangs", options={"hang_s": 0.4, "timeout_s": 0.4})
    for _ in range(2):
        _, text, seconds = ask(running, "hangs", [1.0], header_s=0.4, path="infer_stream")
        assert b"deadline" in text and seconds < 2.0
        until(lambda: ask(running, "hangs", [0.0], header_s=5, path="infer_stream")[0] == 200)
    until(lambda: b"ended 2 workers" in ask(running, "hangs", [1.0], header_s=0.4, path="infer_stream")[1], 5.0)


def test_dependency_that_hangs_ends_at_the_deadline_and_harms_no_other_model(started: Any) -> None:
    """F23. After `hang_s` the hard limit ends the worker, whose code would never come back."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = float(silent.getsockname()[1])
        running = started("asks", "waits_for_more", options={"hang_s": 0.5, "timeout_s": 0.5})
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            hanging = [pool.submit(ask, running, "asks", [port], header_s=0.5) for _ in range(3)]
            others = []
            while not all(future.done() for future in hanging):
                status, answer, seconds = ask(running, "waits_for_more", [2.0])
                assert status == 200 and answer["outputs"][0]["data"] == [6.0]
                others.append(seconds)
        assert {future.result()[0] for future in hanging} <= {503, 504}
        assert 504 in {future.result()[0] for future in hanging}
        assert max(future.result()[2] for future in hanging) < 2.0
        assert sorted(others)[len(others) // 2] < 0.2
        text = lambda: running.log.read_text() + "".join(running.lines)  # noqa: E731
        until(lambda: "worker_stuck" in text())
        assert ask(running, "waits_for_more", [2.0])[0] == 200


def test_in_flight_never_exceeds_the_slots(started: Any) -> None:
    """Callers whose deadline passes at once do not make room for others while the model is still at their requests."""
    running = started("sleeps", options={"workers": 2, "max_queue": 0, "shed": False})
    most = 0
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, running, "sleeps", [0.2], header_s=0.03) for _ in range(60)]
        while not all(future.done() for future in asked):
            most = max(most, gauge(running, "requests_in_flight", "sleeps"))
    assert {future.result()[0] for future in asked} <= {503, 504}
    assert 0 < most <= 3, "two at work and, with an empty queue, one that waits"
    until(lambda: gauge(running, "requests_in_flight", "sleeps") == 0)
    assert ask(running, "sleeps", [0.0])[1]["outputs"][0]["data"] == [1.0], "one at a time in a worker"


@pytest.mark.parametrize("model", ["negative_is_bad", "negative_is_bad_too"])
def test_one_bad_row_of_32_fails_alone(started: Any, model: str) -> None:
    """F33, P5c."""
    running = started(model, options={"batch_delay_s": 0.1, "max_batch_size": 32})
    values = [float(number) if number != 13 else -1.0 for number in range(32)]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda value: ask(running, model, [value]), values))
    for value, (status, answer, _) in zip(values, answers, strict=True):
        if value < 0:
            assert status == 500 and "a bad row" in answer["error"]
        else:
            assert (status, answer["outputs"][0]["data"]) == (200, [3 * value])


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_one_bad_row_of_32_fails_alone_in_a_library_model(server: Factory, tmp_path: Path, executor: str) -> None:
    """Rows of a table by their numbers: one that is not there fails the whole run of ONNX Runtime."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    table = helper.make_tensor("table", TensorProto.FLOAT, [100], np.arange(100, dtype="f4") * 3)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    running = server({"m": {"path": f"{tmp_path}/m.onnx", "executor": executor, "batch_delay_s": 0.1}})

    def one(value: int) -> tuple[int, Any]:
        body = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [value]}]})
        connection = http.client.HTTPConnection(*address(running), timeout=60)
        connection.request("POST", "/v2/models/m/infer", body)
        answer = connection.getresponse()
        text = json.loads(answer.read())
        connection.close()
        return answer.status, text

    values = [number if number != 13 else 1000 for number in range(32)]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, values))
    for value, (status, answer) in zip(values, answers, strict=True):
        if value >= 100:
            assert status in (400, 500), answer
        else:
            assert (status, answer["outputs"][0]["data"]) == (200, [3.0 * value])
