"""Serving from Python: the same model, from a test or a program."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import penstock
from penstock.api import path_of
from penstock.core.errors import InvalidInput, PenstockError


@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def double(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"y": x * 2}


class Doubler:
    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}


def test_a_server_answers_while_its_block_lasts_and_is_gone_after() -> None:
    before = set(threading.enumerate())
    with penstock.Server(double, workers=1) as server:
        assert server.models[0].name == "double"
        with penstock.Client(server.http_url) as client:
            assert client.infer("double", {"x": np.array([1, 2], "f4")})["y"].tolist() == [2, 4]
        url = server.http_url
    assert set(threading.enumerate()) <= before  # other tests' threads may end meanwhile
    with penstock.Client(url, retries=0) as client, pytest.raises(PenstockError):
        client.live()


def test_two_servers_run_beside_each_other() -> None:
    with penstock.Server(double, grpc=False) as one, penstock.Server(double, grpc=False) as other:
        assert one.http_url != other.http_url
        assert one.grpc_address is None


def test_batch_says_how_requests_are_joined() -> None:
    with penstock.Server(double, batch=penstock.Batch(max_size=8, delay_s=0.001, sizes=(4, 8)), grpc=False) as server:
        config = server.models[0].config
        assert (config["max_batch_size"], config["batch_delay_s"]) == (8, 0.001)
    with penstock.Server(double, batch=False, grpc=False) as server:
        assert server.models[0].config["batch"] is False


def test_a_server_that_cannot_start_says_why_where_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no weights')\n")
    with pytest.raises(PenstockError, match="no weights"), penstock.Server(f"{tmp_path}/broken.py:model"):
        pass


def test_an_unknown_option_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidInput, match=r"penstock.Server\(http_prot=…\).*did you mean 'http_port'"):
        penstock.Server(double, http_prot=1)
    with pytest.raises(InvalidInput, match=r"penstock.Server\(workers=…\): workers is 'two'"):
        penstock.Server(double, workers="two")


def test_a_server_that_does_not_run_has_no_address() -> None:
    server = penstock.Server(double)
    with pytest.raises(InvalidInput, match="not running"):
        _ = server.http_url
    server.stop()  # nothing to do


def test_functions_and_classes_of_a_file_are_named_by_it() -> None:
    assert path_of(double) == f"{Path(__file__).resolve()}:double"
    assert path_of(Doubler) == f"{Path(__file__).resolve()}:Doubler"
    assert path_of(Path("iris.onnx")) == "iris.onnx"


def _inside() -> Callable[..., object]:
    def inner(x: object) -> object:
        return x

    return inner


@pytest.mark.parametrize(
    "target",
    [lambda x: x, _inside(), Doubler(), len, Doubler().predict],
    ids=["lambda", "inner function", "object", "builtin", "method"],
)
def test_what_a_worker_could_not_find_by_name_is_refused(target: Callable[..., object]) -> None:
    with pytest.raises(InvalidInput, match="workers load it by name"):
        path_of(target)


def test_serve_in_a_program_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os, signal, penstock\n"
        "@penstock.model(inputs={'x': 'f4[n]'}, outputs={'y': 'f4[n]'})\n"
        "def same(x):\n    return {'y': x}\n"
        "def ready(status):\n"
        "    print(status.models[0].name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "if __name__ == '__main__':\n"
        "    penstock.serve(same, http_port=0, grpc=False, on_ready=ready)\n"
        "    print('stopped')\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "same\nstopped\n"), done.stderr
    (serving,) = (event for event in map(json.loads, done.stderr.splitlines()) if event["event"] == "serving")
    assert serving["models"] == "same@1" and serving["http"].startswith("http://127.0.0.1:")


def test_serve_without_the_main_guard_is_refused_instead_of_starting_servers_in_workers(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import penstock\ndef same(x):\n    return {'y': x}\npenstock.serve(same, http_port=0, grpc=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode != 0
    assert "__main__" in done.stderr
