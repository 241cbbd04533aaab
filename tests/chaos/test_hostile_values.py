"""F13: values that one process reads and the next cannot carry are the caller's fault, with one front and with two."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

import penstock

SAME = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def same(x, parameters):
    return {"y": x}

class Words:
    inputs = {"x": "str[n]"}
    outputs = {"y": "str[n]"}

    def answer(self, inputs, parameters):
        yield {"y": inputs["x"]}
"""
Start = Callable[..., Any]


@pytest.fixture(scope="module", params=[1, 2], ids=["one front", "two fronts"])
def running(request: pytest.FixtureRequest, shared_server: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("model") / "small.py"
    file.write_text(SAME)
    models = {
        "same": {"path": f"{file}:same", "workers": 1},
        "words": {"path": f"{file}:Words", "workers": 1, "inputs": {"x": "str[n]"}, "outputs": {"y": "str[n]"}},
    }
    return shared_server(models, fronts=request.param, model_control="explicit", load_models=["*"])


def post(running: Any, path: str, body: str) -> tuple[int, bytes]:
    parts = urlsplit(running.http)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        connection.request("POST", path, body.encode())
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


INFER = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "parameters": {%s}}'
BIG = "9" * 400


# Each several times, on connections of their own: either front may get them.
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/same/infer", INFER % f'"k": {BIG}'),
        ("/v2/models/same/infer", INFER % f'"timeout": {BIG}'),
        ("/v2/models/same/infer_stream", INFER % f'"k": {BIG}'),
        ("/v2/models/same/generate", f'{{"x": 1, "k": {BIG}}}'),
        ("/v2/models/words/generate_stream", f'{{"x": "a", "k": {BIG}}}'),
        ("/v2/repository/models/same/load", f'{{"parameters": {{"config": {{"max_batch_size": {BIG}}}}}}}'),
        ("/v2/logging", f'{{"log_verbose_level": {BIG}}}'),
        ("/v2/trace/setting", f'{{"trace_count": "{BIG * 20}"}}'),
    ],
)
def test_numbers_beyond_64_bits_are_the_callers_fault(running: Any, path: str, body: str) -> None:
    for _ in range(6):
        status, answer = post(running, path, body)
        assert status == 400, answer
        assert len(answer) < 4000
    with penstock.Client(running.http) as client:
        assert client.infer("same", {"x": [1.0]})["y"].tolist() == [1.0]
    assert "Traceback" not in running.log.read_text()
