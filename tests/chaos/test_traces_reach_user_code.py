"""P13c, P1b: the caller's trace, baggage and deadline reach user code and the calls that it makes, on every way."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from running_server import RunningServer, ServerFactory
from tritonclient.grpc import service_pb2 as pb

import penstock
from penstock.core.trace import TraceContext

CODE = """
import asyncio, json, os, time
import numpy as np
import penstock

def seen(rows):
    trace, left = penstock.current_trace(), penstock.deadline() - time.monotonic()
    mine = None
    for one in penstock.request_traces():
        assert 0 <= one.start < one.stop <= rows
    found = [""] * rows
    for one in penstock.request_traces():
        for row in range(one.start, one.stop):
            found[row] = json.dumps(one.trace.headers())
    lead = json.dumps(trace.headers() if trace else {})
    return {"own": np.array(found, object), "lead": np.array([lead] * rows, object),
            "left": np.full(rows, left, "f8")}

IN, OUT = {"x": "f4[n]"}, {"own": "str[n]", "lead": "str[n]", "left": "f8[n]"}

@penstock.model(inputs=IN, outputs=OUT)
def tell(x):
    if x[0] < 0:
        time.sleep(0.3)       # so that those behind it join
    return seen(len(x))

@penstock.model(inputs=IN, outputs=OUT)
async def later(x):
    await asyncio.sleep(0.01)
    return seen(len(x))

@penstock.model(inputs=IN, outputs=OUT)
def items(x):
    for _ in range(2):
        yield seen(len(x))

@penstock.model(inputs={"x": "f4[n]", "url": "str[n]"}, outputs=OUT)
def nested(x, url):
    return dict(penstock.Client(url[0], timeout_s=30).infer("tell", {"x": x}))

@penstock.model(inputs={"x": "f4[n]", "url": "str[n]"}, outputs=OUT)
async def nested_async(x, url):
    async with penstock.AsyncClient(url[0], timeout_s=30) as client:
        return dict(await client.infer("tell", {"x": x}))

@penstock.model(inputs={"x": "f4[n]", "url": "str[n]"}, outputs={"y": "f4[n]"})
def patient(x, url):
    penstock.Client(url[0], timeout_s=30, retries=0).infer("tell", {"x": -np.ones(1, "f4")})
    return {"y": x}
"""
NAMES = ("tell", "later", "items", "nested", "nested_async", "patient")
SENT = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "congo=t61rcWkgMzE",
    "baggage": "user=7,tier=gold",
}


@pytest.fixture(scope="module", params=[1, 2], ids=["one front", "two fronts"])
def telling(
    shared_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> RunningServer:
    file = tmp_path_factory.mktemp("models") / "telling.py"
    file.write_text(CODE)
    models = {name: {"path": f"{file}:{name}", "workers": 1, "warm_up": False} for name in NAMES}
    return shared_server(models, fronts=request.param)


def ask(server: RunningServer, model: str, headers: dict[str, str], **inputs: object) -> dict[str, list[object]]:
    body = {
        "inputs": [
            {
                "name": name,
                "datatype": "BYTES" if isinstance(value[0], str) else "FP32",
                "shape": [len(value)],
                "data": value,
            }
            for name, value in ({"x": [1.0]} | inputs).items()
        ]
    }
    request = urllib.request.Request(
        f"{server.http}/v2/models/{model}/infer",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return {one["name"]: one["data"] for one in json.load(response)["outputs"]}


@pytest.mark.parametrize("model", ["tell", "later"])
def test_http_headers_reach_user_code(telling: RunningServer, model: str) -> None:
    for _ in range(4):  # several connections, so both fronts
        found = ask(telling, model, SENT)
        assert json.loads(found["own"][0]) == json.loads(found["lead"][0]) == SENT
        found = ask(telling, model, {})
        assert (found["own"], json.loads(found["lead"][0])) == ([""], {}), "nothing is left of the request before"
        found = ask(telling, model, SENT | {"traceparent": "00-nonsense"})
        assert (found["own"], json.loads(found["lead"][0])) == ([""], {}), "an invalid header fails nothing"


def test_grpc_metadata_reach_user_code(telling: RunningServer) -> None:
    request = pb.ModelInferRequest(model_name="tell")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1.0)
    with grpc.insecure_channel(telling.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        answer, ended = call.with_call(request, metadata=[*SENT.items(), ("penstock-timing", "1")], timeout=30)
        own = answer.raw_output_contents[0][4:].decode()
        assert json.loads(own) == SENT
        assert "queue;dur=" in dict(ended.trailing_metadata())["server-timing"], "P13d"


def test_an_answer_shows_where_its_time_went(telling: RunningServer) -> None:
    """P13d, over HTTP; the test above sees it over gRPC."""
    for _ in range(4):  # several connections, so both fronts
        with penstock.Client(telling.http, timing=True) as client:
            timings = client.infer("later", {"x": np.ones(1, "f4")}).timings
        assert set(timings) == {"queue", "batch", "compute"}
        assert 0.01 <= timings["compute"] < 10 and all(seconds >= 0 for seconds in timings.values())


def test_a_stream_has_its_callers_trace(telling: RunningServer) -> None:
    client = penstock.Client(telling.http, headers=SENT)
    got = list(client.stream("items", {"x": [1.0]}))
    assert [json.loads(item["own"][0] if isinstance(item["own"], list) else item["own"]) for item in got] == [
        SENT,
        SENT,
    ]


@pytest.mark.parametrize("model", ["nested", "nested_async"])
def test_a_nested_call_is_part_of_the_trace_and_ends_with_its_callers_deadline(
    telling: RunningServer, model: str
) -> None:
    found = ask(telling, model, SENT | {"Penstock-Timeout-Ms": "5000"}, url=[telling.http])
    assert json.loads(found["own"][0]) == SENT
    assert 0 < found["left"][0] <= 5.0, "the client's own timeout is 30 s"


def test_nobody_works_on_a_nested_call_whose_first_caller_has_given_up(telling: RunningServer) -> None:
    began = time.monotonic()
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(telling, "patient", {"Penstock-Timeout-Ms": "100"}, url=[telling.http])
    assert error.value.code == 504 and time.monotonic() - began < 5.0


def test_each_request_of_a_joined_batch_keeps_its_own_trace(telling: RunningServer) -> None:
    """Requests wait behind a slow one and then run as one batch: each finds its own headers at its own rows."""

    def sent(number: int) -> dict[str, str]:
        sampled = "01" if number % 2 else "00"
        return {"traceparent": f"00-{number:032x}-{number:016x}-{sampled}", "baggage": f"number={number}"}

    answers: dict[int, dict[str, list[object]]] = {}

    def one(number: int) -> None:
        headers = {} if number % 3 == 0 else sent(number)
        answers[number] = ask(telling, "tell", headers, x=[1.0] * (number % 4 + 1))

    slow = threading.Thread(target=ask, args=(telling, "tell", {}), kwargs={"x": [-1.0]})
    slow.start()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in [slow, *threads]:
        thread.join()
    assert len(answers) == len(threads)
    for number, found in answers.items():
        expected = "" if number % 3 == 0 else sent(number)
        for row in found["own"]:
            assert (json.loads(row) if row else "") == expected
    leads = {found["lead"][0] for found in answers.values()}
    assert len(leads) < 10, "some were joined"


@pytest.fixture
def caller_has_span() -> Iterator[str]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("test").start_as_current_span("outside") as span:
        yield trace.format_trace_id(span.get_span_context().trace_id)


def test_the_client_takes_along_the_programs_own_opentelemetry_span(
    telling: RunningServer, caller_has_span: str
) -> None:
    result = penstock.Client(telling.http).infer("tell", {"x": np.ones(1, "f4")})
    assert json.loads(result["own"][0])["traceparent"].split("-")[1] == caller_has_span
    chosen = TraceContext("7" * 32, "7" * 16, 1)
    with penstock.use_trace(chosen):
        result = penstock.Client(telling.http).infer("tell", {"x": np.ones(1, "f4")})
    assert json.loads(result["own"][0]) == chosen.headers(), "what was chosen comes first"
