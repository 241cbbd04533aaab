"""F13: what our own OpenAPI document says may be sent, and what it does not: no failure of ours, no answer it leaves out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penstock

MODELS = """
import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def same(x):
    return {"y": x}

class Words:
    def answer(self, inputs, parameters):
        yield {"y": inputs["x"]}
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# 501 is what the document says of what this server does not do (shared memory with clients), and no failure.
SETTINGS = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "501"]\n'


@pytest.mark.parametrize(
    "effort",
    [
        ["--phases", "examples,fuzzing", "--max-examples", "2", "--seed", "1"],
        pytest.param(["--phases", "examples,coverage,fuzzing", "--max-examples", "1000", "--max-time", "600"], marks=[pytest.mark.fuzz, pytest.mark.timeout(1500)]),
    ],
    ids=["short", "long"],
)  # fmt: skip
@pytest.mark.timeout(180)
def test_answers_are_those_of_the_document(server: Callable[..., Any], tmp_path: Path, effort: list[str]) -> None:
    file = tmp_path / "small.py"
    file.write_text(MODELS)
    words = {"path": f"{file}:Words", "workers": 1, "inputs": {"x": "str[n]"}, "outputs": {"y": "str[n]"}}
    running = server(
        {"same": {"path": f"{file}:same", "workers": 1}, "words": words}, model_control="explicit", load_models=["*"], fronts=2
    )  # fmt: skip
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml"), "run",
            f"{running.http}/openapi.json", "--checks", CHECKS, "--no-color",
            "--continue-on-failure", "--suppress-health-check", "all", *effort,
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Traceback" not in running.log.read_text()
    with penstock.Client(running.http) as client:
        assert client.live()
