"""SmolLM2 as a Hugging Face folder, for engines that read no GGUF: made by transformers itself, kept by pytest."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_folder(request: pytest.FixtureRequest, smollm2: Path) -> Path:
    """The folder that PENSTOCK_TEST_HF_MODEL names; else one made once, whose weights are those of the GGUF file."""
    if named := os.environ.get("PENSTOCK_TEST_HF_MODEL"):
        return Path(named)
    cache = Path(request.config.cache.mkdir("huggingface"))  # type: ignore[union-attr]
    made = cache / "smollm2"
    if not made.exists():
        for package in ("torch", "transformers", "gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed, which makes a Hugging Face folder of the GGUF file")
        unfinished = Path(tempfile.mkdtemp(dir=cache))
        _make(smollm2, unfinished)
        try:
            unfinished.rename(made)
        except OSError:  # another run was faster
            shutil.rmtree(unfinished)
    return made


def _make(source: Path, target: Path) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id, generation.bos_token_id = [2], 2, 1
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    path.write_text(json.dumps({**config, "rope_theta": 100000.0}, indent=2))
