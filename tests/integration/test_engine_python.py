"""A language model's worker in an interpreter of its own: option `python`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest
from running_server import ServerFactory


def test_worker_runs_in_the_interpreter_that_is_named(server: ServerFactory, llmecho: Path, tmp_path: Path) -> None:
    used, python = tmp_path / "used", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho x >> "{used}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    served = server({"echo": {"path": str(llmecho), "options": {"python": str(python)}}})
    answer = httpx.post(f"{served.http}/v1/completions", json={"model": "echo", "prompt": "say:ok", "max_tokens": 9})
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == "ok"
    assert used.exists()


def test_interpreter_that_is_not_there_is_named(server: ServerFactory, llmecho: Path) -> None:
    with pytest.raises(RuntimeError, match="/nowhere/python"):
        server({"echo": {"path": str(llmecho), "options": {"python": "/nowhere/python"}}})


def test_load_call_may_not_choose_the_interpreter(server: ServerFactory, llmecho: Path) -> None:
    """It would start any program that lies on the server's machine."""
    served = server({"echo": {"path": str(llmecho)}}, model_control="explicit", load_models=["echo"])
    config = json.dumps({"parameters": {"python": {"string_value": "/bin/true"}}})
    answer = httpx.post(
        f"{served.http}/v2/repository/models/echo/load", json={"parameters": {"config": config}}, timeout=30
    )
    assert answer.status_code >= 400 and "sets `python`" in answer.text, answer.text
