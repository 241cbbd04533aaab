"""Spans, from a caller's own to those of user code in a worker, over real OTLP to a receiver on loopback."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from otlp_receiver import Received, Receiver, receiving
from running_server import RunningServer, ServerFactory
from tritonclient.grpc import service_pb2 as pb

import penstock
from penstock.core.errors import InvalidInput, PenstockError

MODEL = '''
import os, time
import penstock
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

class Own:
    """User code with a tracer of its own, as any program that uses OpenTelemetry has one."""

    def load(self, context):
        provider = TracerProvider(resource=Resource.create({"service.name": "model"}))
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=context.options["object"])))
        self.tracer = provider.get_tracer("model")

    @penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
    def predict(self, x):
        if x[0] < 0:
            time.sleep(0.3)
        if x[0] > 100:
            raise RuntimeError("the model is broken")
        with self.tracer.start_as_current_span("own step"):
            return {"y": x}

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def plain(x):
    return {"y": x}

@penstock.model(inputs={"x": "f4[n]", "url": "str[n]"}, outputs={"y": "f4[n]"})
def outer(x, url):
    return {"y": penstock.Client(url[0]).infer("own", {"x": x})["y"]}
'''
SENT = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "congo=t61"}


def serve(
    server: ServerFactory, tmp_path: Path, receiver: Receiver | None, *names: str, **options: object
) -> RunningServer:
    file = tmp_path / "own.py"
    file.write_text(
        MODEL.replace('context.options["object"]', repr(receiver.endpoint if receiver else "http://127.0.0.1:9/"))
    )
    entries = {"own": "Own", "plain": "plain", "outer": "outer"}
    models = {name: {"path": f"{file}:{entries[name]}", "workers": 1, "warm_up": False} for name in names or ("own",)}
    if receiver is not None:
        options = {"trace_endpoint": receiver.endpoint, "trace_sampling": 1.0, **options}
    return server(models, **options)


def infer(running: RunningServer, value: float = 1.0, model: str = "own", **more: object) -> penstock.client.Result:
    headers = more.pop("headers", None)
    with penstock.Client(running.http, headers=headers, retries=0) as client:  # type: ignore[arg-type]  # a mapping
        return client.infer(model, {"x": np.full(1, value, "f4"), **more})  # type: ignore[arg-type]  # inputs


def tree(spans: list[Received]) -> dict[str, str]:
    """The name of each span's parent."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_id, span.parent_id) for span in spans}


@pytest.mark.parametrize("fronts", [1, 2])
def test_a_trace_is_connected_from_the_caller_to_user_code(server: ServerFactory, tmp_path: Path, fronts: int) -> None:
    with receiving() as receiver:
        running = serve(server, tmp_path, receiver, fronts=fronts)
        infer(running, headers=SENT)
        spans = receiver.wait_for(5)
        route = "POST /v2/models/{model}/infer"
        assert tree(spans) == {
            route: "00f067aa0ba902b7", "queue": route, "batch": route, "compute": route, "own step": "compute",
        }  # fmt: skip
        assert {span.trace_id for span in spans} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
        by_name = {span.name: span for span in spans}
        whole, queue, batch, compute, own = (by_name[name] for name in (route, "queue", "batch", "compute", "own step"))
        assert whole.start <= queue.start <= queue.end <= batch.start <= batch.end <= compute.start
        assert compute.start <= own.start <= own.end <= whole.end and compute.end <= whole.end
        assert abs(whole.start / 1e9 - time.time()) < 60
        assert (whole.service, own.service, whole.state) == ("penstock", "model", "congo=t61")
        assert whole.kind == 2 and whole.fields["http.route"] == "/v2/models/{model}/infer"
        assert whole.fields["penstock.model"] == "own" and whole.fields["penstock.version"] == "1"
        assert whole.fields["penstock.batch_rows"] == 1 and whole.fields["http.response.status_code"] == 200


def test_a_nested_call_hangs_below_the_model_that_made_it(server: ServerFactory, tmp_path: Path) -> None:
    with receiving() as receiver:
        running = serve(server, tmp_path, receiver, "own", "outer")
        infer(running, model="outer", url=[running.http])
        spans = receiver.wait_for(9)
        assert len({span.trace_id for span in spans}) == 1, "a trace that begins at the server goes on in nested calls"
        outer, inner = ({span.fields.get("penstock.model"): span for span in spans}[name] for name in ("outer", "own"))
        computes = {span.span_id: span for span in spans if span.name == "compute"}
        assert outer.parent_id == "" and computes[inner.parent_id].parent_id == outer.span_id


def test_the_requests_of_one_batch_are_linked(server: ServerFactory, tmp_path: Path) -> None:
    with receiving() as receiver:
        running = serve(server, tmp_path, receiver)
        threads = [threading.Thread(target=infer, args=(running, value)) for value in (-1.0, *[1.0] * 6)]
        threads[0].start()
        time.sleep(0.1)  # the slow one is in the worker; nothing fails if it is not yet, the batches are smaller then
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        computes = receiver.wait_for(7, "compute")
        owns = receiver.wait_for(2, "own step")
        linked = [span for span in computes if span.links]
        assert len(linked) >= 2, "some were joined"
        ids = {(span.trace_id, span.span_id): span for span in computes}
        for span in linked:
            for link in span.links:
                assert (span.trace_id, span.span_id) in ids[link].links, "both name each other"
        leaders = {span.parent_id for span in owns}
        for span in linked:
            assert span.span_id in leaders or len(span.links) == 1


def test_grpc_calls_and_failures_have_spans(server: ServerFactory, tmp_path: Path) -> None:
    with receiving() as receiver:
        running = serve(server, tmp_path, receiver)
        request = pb.ModelInferRequest(model_name="own", id="r1")
        request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
        with grpc.insecure_channel(running.grpc) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString
            )
            call(request, metadata=list(SENT.items()), timeout=30)
            (span,) = receiver.wait_for(1, "inference.GRPCInferenceService/ModelInfer")
            assert (span.parent_id, span.fields["rpc.response.status_code"]) == ("00f067aa0ba902b7", "OK")
            assert span.fields["penstock.request_id"] == "r1"
        with pytest.raises(PenstockError):
            infer(running, 101.0)
        with pytest.raises(InvalidInput):
            infer(running, unknown=np.ones(1))
        bad = receiver.wait_for(2, "POST /v2/models/{model}/infer")
        assert sorted((span.fields["http.response.status_code"], span.status) for span in bad) == [(400, 0), (500, 2)]


def test_callers_decide_and_others_are_sampled(server: ServerFactory, tmp_path: Path) -> None:
    with receiving() as receiver:
        running = serve(server, tmp_path, receiver, trace_sampling=0.0)
        infer(running)
        infer(running, headers={"traceparent": SENT["traceparent"][:-1] + "0"})
        infer(running, headers=SENT)
        receiver.wait_for(5)
        assert {span.trace_id for span in receiver.spans if span.service == "penstock"} == {SENT["traceparent"][3:35]}
        half = serve(server, tmp_path, receiver, "plain", trace_sampling=0.5)
        for _ in range(60):
            infer(half, model="plain")
        half.stop()
        begun = [span for span in receiver.spans if span.kind == 2 and not span.parent_id]
        assert 10 <= len(begun) <= 50


@pytest.mark.parametrize("fault", ["refuses", "hangs", "is not there"])
def test_a_receiver_that_fails_harms_no_request(server: ServerFactory, tmp_path: Path, fault: str) -> None:
    with receiving(503 if fault == "refuses" else 200, 30.0 if fault == "hangs" else 0.0) as receiver:
        endpoint = "http://127.0.0.1:9/v1/traces" if fault == "is not there" else receiver.endpoint
        running = serve(server, tmp_path, None, "plain", trace_endpoint=endpoint, trace_sampling=1.0)
        slowest = 0.0
        with penstock.Client(running.http, headers=SENT) as client:
            for _ in range(2400):  # more than the queue holds
                began = time.monotonic()
                client.infer("plain", {"x": np.ones(1, "f4")})
                slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2.0
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 10.0, "a receiver must not hold up the end"


def test_what_is_not_exported_is_counted(server: ServerFactory, tmp_path: Path) -> None:
    with receiving(400) as receiver:
        running = serve(server, tmp_path, None, "plain", trace_endpoint=receiver.endpoint, trace_sampling=1.0)
        for _ in range(3):
            infer(running, model="plain")
        deadline = time.monotonic() + 20
        with penstock.Client(running.http) as client:
            while 'penstock_traced_requests_total{outcome="failed"} 3.0' not in client.metrics():
                assert time.monotonic() < deadline, client.metrics()
                time.sleep(0.05)
        assert running.log is not None and "spans_not_exported" in running.log.read_text()


@pytest.mark.parametrize("fronts", [1, 2])
def test_the_access_log_has_a_line_for_every_request(server: ServerFactory, tmp_path: Path, fronts: int) -> None:
    running = serve(server, tmp_path, None, access_log=True, fronts=fronts)
    infer(running, headers=SENT | {"X-Request-Id": "abc-1"})
    with pytest.raises(PenstockError):
        infer(running, 101.0)
    with pytest.raises(PenstockError):
        infer(running, 101.0, headers=SENT)
    with penstock.Client(running.http) as client:
        assert client.live()
        with pytest.raises(PenstockError):
            client.metadata('no\x85such"model')
    with grpc.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        call(b"", timeout=30)
    running.stop()
    assert running.log is not None
    everything = [json.loads(line) for line in running.log.read_text().split("\n") if line.startswith("{")]
    good, bad, traced, live, unknown, rpc = (line for line in everything if line["logger"] == "penstock.access")
    errors = [line.get("trace_id") for line in everything if line["event"] == "model_error"]
    assert errors == [None, traced["trace_id"]], "the model's own error names the trace"
    assert (good["method"], good["path"], good["code"]) == ("POST", "/v2/models/own/infer", 200)
    assert (good["model"], good["version"], good["request_id"]) == ("own", "1", "abc-1")
    assert good["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert good["total_ms"] >= good["queue_ms"] + good["compute_ms"] > 0 and good["batch_rows"] == 1
    assert bad["code"] == 500 and "trace_id" not in bad
    assert (live["path"], live["code"], unknown["code"]) == ("/v2/health/live", 200, 404)
    assert (rpc["path"], rpc["code"]) == ("inference.GRPCInferenceService/ServerLive", "OK")
