"""V2 over gRPC against a whole server, with the real client."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODELS = """
import time
import numpy as np
import penstock

LOG = "@LOG@"


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def double(x):
    return {"y": x * 2}


@penstock.model(inputs={"text": "str[n]"}, outputs={"upper": "str[n]"})
def upper(text):
    return {"upper": np.array([str(item).upper() for item in text])}


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def slow(x):
    with open(LOG, "a") as log:
        log.write(f"{x[0, 0]:g}\\n")
    time.sleep(0.4)
    return {"y": x}


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def broken(x):
    raise RuntimeError("the model's own fault")


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def counter(x):
    for number in range(3):
        yield {"y": x * number}
"""


@pytest.fixture
def address(server: Callable[..., Any], tmp_path: Path) -> str:
    file = tmp_path / "functions.py"
    file.write_text(MODELS.replace("@LOG@", str(tmp_path / "ran.log")))
    running = server(
        {
            "double": f"{file}:double",
            "upper": f"{file}:upper",
            "broken": f"{file}:broken",
            "slow": {"path": f"{file}:slow", "workers": 1, "batch": False, "warm_up": False},
            "decoupled": {"path": f"{file}:counter", "warm_up": False},
        }
    )
    return str(running.grpc)


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as made:
        yield made


def tensor(array: np.ndarray, datatype: str = "FP32", name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


X = np.arange(6, dtype="f4").reshape(2, 3)


def test_client_of_triton_works_against_a_whole_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_ready() and client.is_model_ready("double")
    np.testing.assert_array_equal(client.infer("double", [tensor(X)], request_id="7").as_numpy("y"), X * 2)
    text = np.array([b"ab", "é".encode()], dtype=object)
    assert client.infer("upper", [tensor(text, "BYTES", "text")]).as_numpy("upper").tolist() == [b"AB", "É".encode()]
    assert [t.name for t in client.get_model_metadata("double").inputs] == ["x"]
    assert client.get_model_config("double").config.max_batch_size > 0
    (statistics,) = client.get_inference_statistics("double").model_stats
    assert statistics.inference_count >= 2 and statistics.inference_stats.success.count >= 1
    assert {model.name for model in client.get_model_repository_index().models} >= {"double", "upper", "slow", "broken"}

    for name, inputs, status in (
        ("nobody", [tensor(X)], "NOT_FOUND"),
        ("double", [tensor(X.astype("f8"), "FP64")], "INVALID_ARGUMENT"),
        ("double", [], "INVALID_ARGUMENT"),
        ("broken", [tensor(X)], "INTERNAL"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, inputs)
        assert caught.value.status() == f"StatusCode.{status}"

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(5):
        client.async_stream_infer("double", [tensor(X * number)], request_id=str(number))
    client.stop_stream()
    got = [answers.get_nowait() for _ in range(5)]
    assert sorted(result.get_response().id for result, error in got) == ["0", "1", "2", "3", "4"]

    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("decoupled", [tensor(X)], request_id="d", enable_empty_final_response=True)
    client.stop_stream()
    got = [answers.get_nowait() for _ in range(4)]
    assert all(error is None for _, error in got)
    finals = [result.get_response().parameters["triton_final_response"].bool_param for result, _ in got]
    assert finals == [False, False, False, True]
    with pytest.raises(InferenceServerException, match="ModelStreamInfer"):
        client.infer("decoupled", [tensor(X)])


def test_queued_request_whose_client_left_never_reaches_the_models_code(
    client: triton.InferenceServerClient, tmp_path: Path
) -> None:
    log = tmp_path / "ran.log"
    ended: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def send(number: float) -> Any:
        array = np.full((1, 1), number, "f4")
        return client.async_infer("slow", [tensor(array)], callback=lambda result, error: ended.put((result, error)))

    send(1001)  # holds the only worker
    deadline = time.monotonic() + 10
    while not (log.exists() and "1001" in log.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    send(1002).cancel()
    send(1003)
    outcomes = [ended.get(timeout=10) for _ in range(3)]
    assert sum(error is not None for _, error in outcomes) == 1
    assert [line for line in log.read_text().split() if line.startswith("100")] == ["1001", "1003"]
