"""F31, P13a: whatever callers make up (paths, models, versions, tenants, methods, traces) and however many models come
and go, the series are bounded, the memory comes back and a scrape stays quick."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, ServerFactory

import penstock
from penstock.core.errors import NotFound, NotReady

pytestmark = pytest.mark.alone

Figure = Callable[..., None]

CODE = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def one(x):
    return {"y": x}
"""
INPUTS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
SERIES_OF_A_MODEL, SERIES_OF_THE_REST = 60, 200
# What an allocator keeps and caches of fixed size hold, of a process of some 60 MB. A label of 10^5 values, at 200 bytes
# each, would be 20 MB.
SLACK_BYTES = 6 << 20


@pytest.fixture(params=[1, 2], ids=["one front", "two fronts"])
def running(server: ServerFactory, tmp_path: Path, request: pytest.FixtureRequest) -> RunningServer:
    (tmp_path / "one.py").write_text(CODE)
    model = {"path": f"{tmp_path / 'one.py'}:one", "workers": 1, "warm_up": False}
    return server(
        {"one": model}, model_control="explicit", load_models=["one"], accept_code=True, fronts=request.param,
        log_level="error",
    )  # fmt: skip


def bomb(number: int) -> Iterator[tuple[str, str, object, dict[str, str]]]:
    """One request of each kind, as nobody has sent it before: method, path, body, headers."""
    yield "GET", f"/path{number}/of/nothing?q={number}", None, {}
    yield "POST", f"/v2/models/model{number}/infer", INPUTS, {}
    yield "GET", f"/v2/models/one/versions/{number + 2}", None, {}
    yield "GET", f"/v2/models/one/versions/label{number}/stats", None, {}
    if number % 10 == 0:  # each looks at the files anew
        yield "POST", f"/v2/repository/models/model{number}/load", {}, {}
    yield "POST", f"/v2/repository/models/model{number}/unload", {}, {}
    yield "POST", f"/v2/models/model{number}/trace/setting", {"trace_level": ["TIMESTAMPS"]}, {}
    yield "POST", "/v2/models/one/infer", {**INPUTS, "id": f"request{number}"}, {
        "traceparent": f"00-{number + 1:032x}-{number + 1:016x}-01",
        "baggage": f"tenant=t{number}",
        "X-Tenant": f"tenant{number}",
        f"X-Header-{number}": "1",
        "X-Request-Id": f"id{number}",
        "User-Agent": f"agent/{number}",
    }  # fmt: skip
    yield "PROPFIND" if number % 2 else f"M{number}", "/v2", None, {}


def throw(running: RunningServer, numbers: range) -> Counter[int]:
    """Answers by status; 0 is a connection that was closed on a method that HTTP does not know."""
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection(urlsplit(running.http).netloc, timeout=30)
    for number in numbers:
        for method, path, body, headers in bomb(number):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
            except (http.client.HTTPException, ConnectionError):
                statuses[0] += 1
                connection.close()
    connection.close()
    with grpc.insecure_channel(running.grpc) as channel:
        for number in numbers[:: max(1, len(numbers) // 2000)]:
            call = channel.unary_unary(f"/service{number}.S/Method{number}")
            with contextlib.suppress(grpc.RpcError):
                call(b"", metadata=[("x-tenant", f"t{number}"), (f"x-header-{number}", "1")], timeout=30)
    return statuses


def scrape(running: RunningServer) -> tuple[set[tuple[str, tuple[tuple[str, str], ...]]], float]:
    """All series, and the seconds that the scrape took."""
    began = time.monotonic()
    with penstock.Client(running.http) as client:
        text = client.metrics()
    took_s = time.monotonic() - began
    series = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return series, took_s


def check_bounds(series: set[tuple[str, tuple[tuple[str, str], ...]]], models: int) -> None:
    of_models = Counter(
        dict(labels)["model"] for _, labels in series if "model" in dict(labels) and "worker" not in dict(labels)
    )
    assert len(of_models) == models and max(of_models.values()) <= SERIES_OF_A_MODEL
    assert len(series) - sum(of_models.values()) <= SERIES_OF_THE_REST


def memory_bytes(running: RunningServer) -> int:
    """Resident memory of the process that holds the models."""
    lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.parametrize(
    "count", [250, pytest.param(12_400, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])], ids=["2000", "100000"]
)
def test_what_callers_make_up_makes_no_series_and_keeps_no_memory(
    running: RunningServer, count: int, figure: Figure
) -> None:
    throw(running, range(10**6, 10**6 + max(60, count // 10)))  # fills what is bounded
    before, before_bytes = scrape(running)[0], memory_bytes(running)
    statuses = throw(running, range(count))
    series, took_s = scrape(running)
    grown = memory_bytes(running) - before_bytes
    assert statuses[200] == count and statuses[404] >= 5 * count, statuses
    assert not any(status >= 500 for status in statuses), statuses
    check_bounds(series, models=1)
    assert series == before, "another caller's words are another series"
    assert took_s < 2.0
    assert grown < SLACK_BYTES
    figure("P13a", "series after 10^5 made-up paths, models, versions, tenants and methods", len(series), "series")
    figure("P13a", "memory kept after them", grown / 2**20, "MiB")
    figure("P13a", "a scrape after them", took_s * 1e3, "ms")


def gone(client: penstock.Client, model: str) -> bool:
    """Whether the server says that there is no such model; that it is not ready is true only on the way there."""
    try:
        client.infer(model, {"x": np.ones(1, "f4")})
    except NotFound:
        return True
    except NotReady:
        return False
    raise AssertionError(f"{model} answers although it is gone")


@pytest.mark.parametrize(
    "count", [5, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])], ids=["few", "many"]
)
def test_models_that_come_and_go_take_their_series_along(running: RunningServer, count: int, figure: Figure) -> None:
    def come_and_go(names: range) -> None:
        with penstock.Client(running.http) as client:
            for number in names:
                name = f"made{number}"
                client.load(name, config={"backend": "python"}, files={"1/model.py": CODE.encode()})
                client.infer(name, {"x": np.ones(1, "f4")})
                if number == names[-1]:
                    check_bounds(scrape(running)[0], models=2)
                client.unload(name)
                deadline = time.monotonic() + 30
                while any(status.name == name for status in client.index()):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                while not gone(client, name):  # an extra front hears of it a moment later
                    assert time.monotonic() < deadline

    come_and_go(range(1_000_000, 1_000_002 + count // 10))
    before, before_bytes = scrape(running)[0], memory_bytes(running)
    come_and_go(range(count))
    deadline = time.monotonic() + 10
    while (series := scrape(running)[0]) != before:
        assert time.monotonic() < deadline, series ^ before
    assert memory_bytes(running) - before_bytes < SLACK_BYTES
    figure("P13a", "series left by models that came and went", len(series - before), "series", goal="0")
