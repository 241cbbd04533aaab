"""V2 over HTTP against a whole server, with the real client."""

from __future__ import annotations

import base64
import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODELS = """
import numpy as np
import penstock


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def double(x):
    return {"y": x * 2}


@penstock.model(inputs={"x": "f2[n, k]"}, outputs={"y": "f2[n, k]"})
def half(x):
    return {"y": x}


@penstock.model(inputs={"x": "bf2[n, k]"}, outputs={"y": "bf2[n, k]"})
def brain(x):
    return {"y": x * 2}


@penstock.model(inputs={"text": "bytes[n]"}, outputs={"same": "bytes[n]"})
def blob(text):
    return {"same": text}


@penstock.model(inputs={"x": "f4[n, k]"}, outputs={"y": "f4[n, k]"})
def broken(x):
    raise RuntimeError("the model's own fault")


@penstock.model(inputs={"text_input": "str[n, 1]"}, outputs={"text_output": "str[n, 1]"})
def words(text_input):
    for word in str(text_input[0, 0]).split():
        yield {"text_output": np.array([[word]])}
"""

X = np.array([[0.5, 3.0, -1.0], [7.0, 0.25, 2.0]], dtype="f4")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "functions.py"
    path.write_text(MODELS)
    return path


@pytest.fixture(scope="module")
def running(shared_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("models") / "functions.py"
    file.write_text(MODELS)
    plain = {name: f"{file}:{name}" for name in ("double", "half", "brain", "blob", "broken")}
    return shared_server({**plain, "words": {"path": f"{file}:words", "warm_up": False}})


@pytest.fixture
def client(running: Any) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(running.http.removeprefix("http://")) as made:
        yield made


def tensor(array: np.ndarray, datatype: str = "FP32", name: str = "x", *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, method="POST", headers=named)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("double")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "penstock" and "binary_tensor_data" in server["extensions"]
    metadata = client.get_model_metadata("double")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    assert client.get_model_metadata("double", metadata["versions"][0]) == metadata
    config = client.get_model_config("double")
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_metadata("nobody")
    assert caught.value.status() == "404"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_the_four_combinations_and_the_default(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    outputs = None if binary_out is None else [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer("double", [tensor(X, binary=binary_in)], outputs=outputs, request_id="7")
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression_both_ways(
    client: triton.InferenceServerClient, request_coding: str | None, response_coding: str | None
) -> None:
    large = np.tile(X, (50, 20))
    result = client.infer(
        "double", [tensor(large)], request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("y"), large * 2)


def test_bytes_and_half_precision(client: triton.InferenceServerClient) -> None:
    blobs = np.array([b"\x00\xff", "né".encode()], dtype=object)
    assert client.infer("blob", [tensor(blobs, "BYTES", "text")]).as_numpy("same").tolist() == blobs.tolist()
    halves = X.astype("f2")
    np.testing.assert_array_equal(client.infer("half", [tensor(halves, "FP16")]).as_numpy("y"), halves)


def test_bf16_bytes(running: Any) -> None:
    item = {"name": "x", "datatype": "BF16", "shape": [1, 2], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    status, headers, body = post(
        f"{running.http}/v2/models/brain/infer",
        head + b"\xc0\x3f\x00\xc0",
        Inference_Header_Content_Length=str(len(head)),
    )
    assert status == 200
    assert body[int(headers["Inference-Header-Content-Length"]) :] == b"\x40\x40\x80\xc0"  # 3.0, -4.0


def test_a_raw_body_is_one_row(running: Any) -> None:
    status, headers, body = post(
        f"{running.http}/v2/models/double/infer", X[0].tobytes(), Inference_Header_Content_Length="0"
    )
    assert status == 200
    assert body[int(headers["Inference-Header-Content-Length"]) :] == (X[:1] * 2).tobytes()


def test_classification(client: triton.InferenceServerClient) -> None:
    result = client.infer("double", [tensor(X)], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    assert result.as_numpy("y").tolist() == [[b"6.000000:1", b"1.000000:0"], [b"14.000000:0", b"4.000000:2"]]


def test_sequences_priority_timeout_and_parameters_are_accepted(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        "double", [tensor(X)], sequence_id=7, sequence_start=True, priority=1, timeout=10_000_000, parameters={"a": "b"}
    )
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)


def test_many_requests_at_once_get_their_own_answers(running: Any) -> None:
    with triton.InferenceServerClient(running.http.removeprefix("http://"), concurrency=8) as client:
        calls = [client.async_infer("double", [tensor(X + number)]) for number in range(64)]
        for number, call in enumerate(calls):
            np.testing.assert_array_equal(call.get_result().as_numpy("y"), (X + number) * 2)


@pytest.mark.parametrize(
    ("model", "array", "datatype", "status"),
    [("double", X.astype("f8"), "FP64", "400"), ("nobody", X, "FP32", "404"), ("broken", X, "FP32", "500")],
)
def test_errors_have_their_status(
    client: triton.InferenceServerClient, model: str, array: np.ndarray, datatype: str, status: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [tensor(array, datatype)])
    assert caught.value.status() == status


def test_a_deadline_that_has_passed_is_504(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("double", [tensor(X)], timeout=1)
    assert caught.value.status() == "504"


def test_statistics_count_rows_and_batches(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("double")["model_stats"][0]
    for _ in range(3):
        client.infer("double", [tensor(X)])
    after = client.get_inference_statistics("double")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 3
    assert after["inference_stats"]["compute_infer"]["ns"] > 0
    assert len(client.get_inference_statistics()["model_stats"]) == 6


def test_trace_and_log_settings(client: triton.InferenceServerClient) -> None:
    settings = client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "5"})
    assert settings["trace_level"] == ["TIMESTAMPS"]
    assert client.get_trace_settings()["trace_rate"] == "5"
    assert client.update_trace_settings(model_name="double", settings={"trace_rate": "9"})["trace_rate"] == "9"
    assert client.update_trace_settings(model_name="double", settings={"trace_rate": None})["trace_rate"] == "5"
    settings = client.update_log_settings({"log_verbose_level": 1})
    assert settings["log_verbose_level"] == 1
    assert client.get_log_settings() == settings


def test_shared_memory_is_refused_with_the_reason(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="shared memory") as caught:
        client.register_system_shared_memory("r", "/r", 8)
    assert caught.value.status() == "501"


def test_generate_and_its_stream(running: Any) -> None:
    url = f"{running.http}/v2/models/words/generate"
    status, headers, body = post(f"{url}_stream", b'{"text_input":"to be or"}')
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    events = [json.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: ")]
    assert [event["text_output"] for event in events] == ["to", "be", "or"]
    assert json.loads(post(url, b'{"text_input":"to"}')[2])["text_output"] == "to"


def test_index_load_with_files_and_unload(server: Callable[..., Any], file: Path) -> None:
    running = server({"double": f"{file}:double"}, model_control="explicit")
    with triton.InferenceServerClient(running.http.removeprefix("http://")) as client:
        assert [line["name"] for line in client.get_model_repository_index()] == ["double"]
        assert not client.is_model_ready("double")
        client.load_model("double")
        assert client.is_model_ready("double")
        np.testing.assert_array_equal(client.infer("double", [tensor(X)]).as_numpy("y"), X * 2)
        client.load_model("double", config=json.dumps({"max_batch_size": 4}))
        assert client.get_model_config("double")["max_batch_size"] == 4
        with pytest.raises(InferenceServerException):
            client.load_model("double", config=json.dumps({"no_such_field": 4}))
        assert client.is_model_ready("double")
        with pytest.raises(InferenceServerException):
            client.load_model("double", config="{}", files={"file:../x": b"y"})
        client.unload_model("double")
        assert not client.is_model_ready("double")


def test_a_server_that_decides_itself_refuses_to_load(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("double")
    assert caught.value.status() == "501"


def test_the_other_protocols_answer_on_the_same_port(running: Any) -> None:
    assert json.loads(post(f"{running.http}/v1/models/double:predict", b'{"instances":[[1,2]]}')[2]) == {
        "predictions": [[2.0, 4.0]]
    }
    assert json.loads(post(f"{running.http}/predict/double", b"1,2\n3,4\n")[2])["predictions"] == [
        [2.0, 4.0],
        [6.0, 8.0],
    ]
    packed = gzip.compress(b"[[1, 2]]")
    assert json.loads(post(f"{running.http}/predict/double", packed, Content_Encoding="gzip")[2])["predictions"] == [
        [2.0, 4.0]
    ]
    with urllib.request.urlopen(f"{running.http}/openapi.json", timeout=30) as response:
        names = [model["name"] for model in json.load(response)["x-penstock-models"]]
    assert {"double", "blob"} <= set(names)


def test_files_of_a_load_call_are_written_inside_the_model_only(server: Callable[..., Any], file: Path) -> None:
    running = server({"double": f"{file}:double"}, model_control="explicit")
    body = {"parameters": {"config": "{}", "file:1/../../evil.py": base64.b64encode(b"x").decode()}}
    status, _, _ = post(f"{running.http}/v2/repository/models/double/load", json.dumps(body).encode())
    assert status == 400
