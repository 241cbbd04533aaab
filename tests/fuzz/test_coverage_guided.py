"""The same decoders under atheris (libFuzzer), which sees what an input reached and goes on from there."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest
from targets import TARGETS

SECONDS = 90
FUZZ = runpy.run_path(str(Path(__file__).parent / "__main__.py"), run_name="fuzz")
NEEDS_ATHERIS = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")


@NEEDS_ATHERIS
@pytest.mark.fuzz
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_the_fuzzer_finds_breaks_a_decoder(name: str, tmp_path: Path) -> None:
    done = FUZZ["fuzz"](name, SECONDS, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert FUZZ["executions"](done.stderr) > 1000


@NEEDS_ATHERIS
@pytest.mark.timeout(120)
def test_the_fuzzer_finds_a_fault_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer that cannot fail proves nothing: with a broken decoder in the table it must."""
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import penstock.protocols.predict_http.npy as npy\nnpy.read_npy = lambda data, spec: {}['a fault']\n"
        "import penstock.protocols.predict_http.reading as reading\nreading.read_npy = npy.read_npy\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = FUZZ["fuzz"]("http_body", 20, tmp_path / "kept")
    assert done.returncode != 0 and "a fault" in done.stdout + done.stderr
