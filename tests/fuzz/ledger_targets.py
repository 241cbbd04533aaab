"""What the ledger and the trace context read: answers and counters of any server, headers of any caller."""

from __future__ import annotations

import numpy as np
import orjson
from target import Target

from penstock.core import trace
from penstock.core.errors import PenstockError
from penstock.ledger import counters
from penstock.ledger.payloads import Payloads

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def payloads() -> Payloads:
    return Payloads("m", "", [{"x": np.zeros((1, 2), "f4")}], {"x": "FP32"})


def json_answer(data: bytes) -> bool:
    """A V2 JSON answer."""
    try:
        payloads().read_json(data)
    except PenstockError:
        return False
    return True


def grpc_answer(data: bytes) -> bool:
    """A ModelInferResponse."""
    try:
        payloads().read_grpc(data)
    except PenstockError:
        return False
    return True


def metrics(data: bytes) -> bool:
    """A Prometheus exposition."""
    return counters.understood(data.decode(errors="replace"), "m") is not None


def trace_headers(data: bytes) -> bool:
    """traceparent, tracestate and baggage, a line each."""
    lines = [*data.decode("latin-1").split("\n"), "", "", ""]
    return trace.read(lines[0], lines[1], lines[2]) is not None


def targets() -> list[Target]:
    answer = payloads()._response(id="1", model_version="1")
    answer.outputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    raw = payloads()._response()
    raw.outputs.add(name="y", datatype="INT64", shape=[1])
    raw.raw_output_contents.append(bytes(8))
    output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]}
    text = b'penstock_requests_total{model="m",outcome="success"} 3\nprocess_start_time_seconds 1.5\n'
    return [
        Target("ledger_json", json_answer, (orjson.dumps({"id": "1", "outputs": [output]}),)),
        Target("ledger_grpc", grpc_answer, (answer.SerializeToString(), raw.SerializeToString())),
        Target("ledger_metrics", metrics, (text,)),
        Target("trace_headers", trace_headers, (PARENT, PARENT + b"\na=1,b=2\nkey=value;p=1")),
    ]
