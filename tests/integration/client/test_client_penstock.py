"""Both clients against Penstock's own server, started as a user starts it."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import start

from penstock.client import Client
from penstock.core import errors

MODELS = """
import time
import numpy as np
import penstock

@penstock.model(inputs={"x": "f4[n, 4]"}, outputs={"y": "f4[n, 4]"})
def double(x):
    return {"y": x * 2}

@penstock.model(inputs={"b": "bf2[n]", "h": "f2[n]", "s": "str[n]"}, outputs={"b": "bf2[n]", "h": "f2[n]", "s": "str[n]"})
def same(b, h, s):
    return {"b": b, "h": h, "s": s}

@penstock.model(inputs={"x": "f8[n]"}, outputs={"y": "f8[n]"}, batch=False)
def slow(x):
    time.sleep(float(x[0]))
    if x[0] == 0:
        raise ValueError("zero is not slow")
    return {"y": x}

@penstock.model(inputs={"x": "f8[n]"}, outputs={"total": "f8[1]"})
def totals(x):
    total = 0.0
    for number in x:
        if number < 0:
            raise ValueError("too small")
        total += float(number)
        yield {"total": np.array([total])}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server for all tests here: it takes longer to start than they do to run."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "m.py").write_text(MODELS)
    names = ("double", "same", "slow", "totals")
    models = {name: {"path": f"{folder}/m.py:{name}", "workers": 1} for name in names}
    server = start(folder, models, api_key="key")
    yield server
    server.stop()


def test_the_clients_speak_with_penstock(connect: Any, running: Any) -> None:
    client = connect(running.http, api_key="key", timing=True)
    assert client.call("live") and client.call("ready") and client.call("ready", "double", 1)
    assert client.call("models") == ["double", "same", "slow", "totals"]
    with pytest.raises(errors.Unauthenticated):
        connect(running.http, api_key="wrong").call("models")

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    result = client.call("infer", "double", {"x": x}, request_id="r")
    np.testing.assert_array_equal(result["y"], 2 * x)
    assert (result.model, result.version, result.id) == ("double", "1", "r")
    assert set(result.timings) == {"queue", "batch", "compute"}
    assert all(0 <= seconds < 10 for seconds in result.timings.values())
    np.testing.assert_array_equal(client.call("infer", "double", {"x": [[1, 2, 3, 4]]})["y"], [[2, 4, 6, 8]])
    squeezed = connect(running.http, api_key="key", compression="gzip")
    np.testing.assert_array_equal(squeezed.call("infer", "double", {"x": x})["y"], 2 * x)

    inputs = {"b": [1.5, -2], "h": np.array([0.5, 2], np.float16), "s": ["é", "z\0"]}
    result = client.call("infer", "same", inputs)
    assert (result["b"].tolist(), result["h"].dtype) == ([1.5, -2.0], np.float16)
    assert result.text("s").tolist() == ["é", "z\0"]

    assert [one["total"] for one in client.listed("totals", {"x": [1, 2, 3]})] == [1, 3, 6]
    with pytest.raises(errors.ServableError, match="too small"):
        client.listed("totals", {"x": [1, -1]})

    metadata = client.call("metadata", "double")
    assert [(one.name, one.datatype, one.shape) for one in metadata.inputs] == [("x", "FP32", (-1, 4))]
    assert {(one.name, one.state) for one in client.call("index")} >= {("double", "READY")}
    with pytest.raises(errors.Unsupported):
        client.call("unload", "double")


@pytest.mark.alone
def test_errors_keep_their_type_across_the_wire(connect: Any, running: Any) -> None:
    client = connect(running.http, api_key="key", retries=0)
    with pytest.raises(errors.NotFound, match="nobody"):
        client.call("infer", "nobody", {"x": np.zeros(1)})
    with pytest.raises(errors.InvalidInput, match=r"shape \[1, 3\]"):
        client.call("infer", "double", {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(errors.ServableError, match="zero is not slow"):
        client.call("infer", "slow", {"x": np.zeros(1)})
    before = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        client.call("infer", "slow", {"x": np.array([1.5])}, timeout_s=0.3)
    assert time.monotonic() - before < 1.2


def test_statistics_metrics_and_the_clients_own_count_agree(running: Any) -> None:
    with Client(running.http, api_key="key") as client:
        (before,) = client.statistics("double")
        rows = 0
        for number in range(1, 40):
            size = number % 5 + 1
            rows += size
            client.infer("double", {"x": np.zeros((size, 4), np.float32)})
        with pytest.raises(errors.ServableError):
            client.infer("slow", {"x": np.zeros(1)})
        (after,) = client.statistics("double")
        (slow,) = client.statistics("slow")
        request = urllib.request.Request(f"{running.http}/metrics", headers={"Authorization": "Bearer key"})
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
    assert after.success.count - before.success.count == 39
    assert after.inference_count - before.inference_count == rows
    assert slow.fail.count >= 1
    assert (after.executor, after.in_flight, after.queued) == ("process", 0, 0)
    assert [worker["state"] for worker in after.workers] == ["ready"] and int(str(after.workers[0]["pid"])) > 1
    assert sum(tally.compute_infer.count for tally in after.batches.values()) == after.execution_count
    assert abs(after.last_inference_ms / 1e3 - time.time()) < 30
    assert after.success.ns >= after.queue.ns + after.compute_infer.ns > 0

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        (found,) = (s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
        return found

    double = {"model": "double", "version": "1"}
    assert value("penstock_requests_total", **double, outcome="success") == after.success.count
    assert value("penstock_rows_total", **double) == after.inference_count
    assert value("penstock_request_seconds_sum", **double) == pytest.approx(after.success.ns / 1e9)
    assert value("penstock_request_seconds_count", **double) == after.success.count
    failed = [s for s in samples if s.name == "penstock_requests_total" and s.labels["model"] == "slow"]
    assert sum(s.value for s in failed if s.labels["outcome"] != "success") == slow.fail.count
    assert value("penstock_requests_total", model="slow", outcome="model_error") >= 1
    batches = sum(s.value for s in samples if s.name == "penstock_batches_total" and s.labels["model"] == "double")
    assert batches == after.execution_count
    assert value("penstock_worker_ready", **double, worker="0") == 1
    assert value("penstock_worker_resident_memory_bytes", **double, worker="0") > 1e6
    assert value("penstock_responses_total", listener="http", **{"class": "2xx"}) >= 39
