"""Options of models, each seen to have its effect from outside. `tests/unit/test_every_option.py` lists them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.client import Client
from penstock.core.errors import DeadlineExceeded, PenstockError

Start = Callable[..., Any]

MODELS = """
import os
import threading
import time
from pathlib import Path

import penstock


@penstock.model(inputs={"x": "f4[n]"}, outputs={"rows": "i8[n]", "pid": "i8[n]"})
def rows(x):
    time.sleep(0.02)
    return {"rows": [len(x)] * len(x), "pid": [os.getpid()] * len(x)}


@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def slow(x):
    time.sleep(0.5)
    return {"y": x}


def undeclared(x):
    return {"y": x}


class Weights:
    def load(self, artifact, context):
        self.weight = float(Path(artifact).read_text())
        self.threads = context.threads

    @penstock.model
    def predict(self, inputs):
        return {"y": inputs["x"] * self.weight}


class Context:
    def load(self, artifact, context):
        self.context = context

    def predict(self, inputs):
        context, n = self.context, len(inputs["x"])
        return {"threads": [context.threads] * n, "borrowed": [context.borrowed_threads] * n,
                "device": [context.device] * n}


class Slow:
    def load(self, artifact, context):
        time.sleep(60)

    def predict(self, inputs):
        return inputs
"""

X = {"x": np.zeros(1, "f4")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def ask(server: Start, file: Path) -> Start:
    """Starts one server with several entries for models of `file`, and gives a client of it."""

    def start(**models: dict[str, object]) -> Client:
        tables = {name: {"workers": 1, **table, "path": f"{file}:{table['path']}"} for name, table in models.items()}
        return Client(server(tables).http, retries=0, timeout_s=None)

    return start


def at_once(client: Client, model: str, count: int) -> list[Any]:
    """The answers to `count` calls made at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: client.infer(model, X), range(count)))


def test_batch_and_max_batch_size_decide_how_many_requests_are_joined(ask: Start) -> None:
    client = ask(
        joined={"path": "rows"}, apart={"path": "rows", "batch": False}, small={"path": "rows", "max_batch_size": 3}
    )
    most = {
        name: max(int(result["rows"][0]) for result in at_once(client, name, 24))
        for name in ("joined", "apart", "small")
    }
    assert most["joined"] > 3
    assert most["apart"] == 1
    assert most["small"] in (2, 3)


def test_batch_sizes_pad_a_batch_and_the_padding_is_not_answered(ask: Start) -> None:
    client = ask(padded={"path": "rows", "batch_sizes": [4, 8], "max_batch_size": 8})
    result = client.infer("padded", X)
    assert result["rows"].tolist() == [4]


@pytest.mark.alone
def test_batch_delay_s_makes_a_free_worker_wait_for_more(ask: Start) -> None:
    client = ask(eager={"path": "rows"}, patient={"path": "rows", "batch_delay_s": 0.5})

    def seconds(model: str) -> float:
        begun = time.monotonic()
        client.infer(model, X)
        return time.monotonic() - begun

    assert min(seconds("eager") for _ in range(3)) < 0.4
    assert seconds("patient") >= 0.5


def test_timeout_s_is_the_deadline_of_requests_that_bring_none(ask: Start) -> None:
    tables = {
        "hurried": {"path": "slow", "timeout_s": 0.05, "warm_up": False},
        "calm": {"path": "slow", "warm_up": False},
    }
    client = ask(**tables)  # the client names no time
    with pytest.raises(DeadlineExceeded):
        client.infer("hurried", X)
    assert client.infer("calm", X)["y"].tolist() == [0]


def test_workers_are_as_many_processes(ask: Start) -> None:
    client = ask(one={"path": "rows"}, three={"path": "rows", "workers": 3, "batch": False})
    for model, count in (("one", 1), ("three", 3)):
        assert len({int(result["pid"][0]) for result in at_once(client, model, 30)}) == count


def test_threads_borrow_threads_and_devices_reach_the_model(ask: Start) -> None:
    declared = {"inputs": {"x": "f4[n]"}, "outputs": {"threads": "i8[n]", "borrowed": "i8[n]", "device": "bytes[n]"}}
    cores = len(os.sched_getaffinity(0))
    client = ask(
        alone={"path": "Context", **declared, "workers": cores, "borrow_threads": False},
        helped={"path": "Context", **declared, "workers": cores},
        three={"path": "Context", **declared, "threads": 3},
        elsewhere={"path": "Context", **declared, "devices": ["cuda:3"]},
    )

    def one(model: str, output: str) -> Any:
        return client.infer(model, X)[output].tolist()[0]

    assert one("alone", "threads") == 1 and one("alone", "borrowed") == 0
    assert (one("helped", "borrowed") > 0) is (cores > 1)
    assert one("three", "threads") == 3
    assert one("elsewhere", "device") == b"cuda:3" and one("alone", "device") == b"cpu"


def test_inputs_and_outputs_declare_what_the_code_does_not(ask: Start) -> None:
    client = ask(declared={"path": "undeclared", "inputs": {"x": "f4[n, 2]"}, "outputs": {"y": "f4[n, 2]"}})
    metadata = client.metadata("declared")
    assert [(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs] == [("x", "FP32", (-1, 2))]
    with pytest.raises(PenstockError, match="expects"):
        client.infer("declared", {"x": np.zeros((1, 3), "f4")})


def test_name_and_adapter_and_options_are_taken(server: Start, file: Path, tmp_path: Path) -> None:
    (tmp_path / "weight").write_text("3")
    table = {
        "path": f"{file}:Weights", "adapter": "python", "workers": 1, "options": {"artifact": str(tmp_path / "weight")},
        "inputs": {"x": "f4[n]"}, "outputs": {"y": "f4[n]"},
    }  # fmt: skip
    client = Client(server({"named": table}).http)
    assert client.models() == ["named"]
    assert client.infer("named", {"x": np.array([2], "f4")})["y"].tolist() == [6]


def test_a_load_that_takes_longer_than_load_timeout_s_ends(file: Path) -> None:
    command = ["serve", f"{file}:Slow", "--load-timeout-s", "1", "--http-port", "0", "--no-grpc", "--workers", "1"]
    command += ["--inputs", "x=f4[n]", "--outputs", "x=f4[n]"]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *command], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 1 and "Slow" in done.stderr
    assert 1 <= time.monotonic() - begun < 20


def test_trust_lets_a_pickled_model_in(tmp_path: Path) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LinearRegression().fit(np.array([[0.0], [1.0]]), np.array([0.0, 2.0]))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    import penstock

    with pytest.raises(PenstockError, match="trust"), penstock.Server(tmp_path / "model.pkl", grpc=False):
        pass
    with penstock.Server(tmp_path / "model.pkl", trust=True, grpc=False, workers=1) as server:
        (description,) = server.models
        spec = description.signature.inputs[0]
        with Client(server.http_url) as client:
            result = client.infer(description.name, {spec.name: np.array([[3.0]], spec_dtype(spec.datatype))})
        assert next(iter(result.outputs.values())).ravel().tolist() == pytest.approx([6.0])


def spec_dtype(datatype: str) -> str:
    return {"FP32": "f4", "FP64": "f8"}[datatype]


def test_executor_and_warm_up_decide_where_a_library_model_runs(server: Start) -> None:
    digits = str(Path(__file__).parents[2] / "examples" / "digits" / "model.onnx")
    tables = {
        "measured": {"path": digits},
        "cold": {"path": digits, "warm_up": False},
        "apart": {"path": digits, "executor": "process", "workers": 1},
        "inside": {"path": digits, "executor": "inline"},
    }
    with Client(server(tables).http) as client:
        executors = {
            name: client.config(name)["parameters"]["executor"]["string_value"]  # type: ignore[index]
            for name in tables
        }
    assert executors["apart"] == "process" and executors["inside"] == "inline"
    assert executors["cold"] == "process"  # nobody knows how long it takes


def test_versions_and_labels_decide_what_answers(server: Start, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / "m" / str(number)).mkdir(parents=True)
        (tmp_path / "m" / str(number) / "model.py").write_text(
            "import penstock\n@penstock.model(inputs={'x': 'f4[n]'}, outputs={'y': 'f4[n]'})\n"
            f"def predict(x):\n    return {{'y': x * 0 + {number}}}\n"
        )
    path = str(tmp_path / "m")
    tables = {
        "newest": {"path": path, "workers": 1},
        "chosen": {"path": path, "workers": 1, "versions": "1,3", "labels": {"stable": 1}},
    }
    with Client(server(tables).http, retries=0) as client:
        assert client.metadata("newest").versions == ("3",)
        assert client.metadata("chosen").versions == ("1", "3")
        assert client.infer("chosen", X, version="stable")["y"].tolist() == [1]
        assert client.infer("chosen", X)["y"].tolist() == [3]
        with pytest.raises(PenstockError):
            client.infer("newest", X, version="1")
