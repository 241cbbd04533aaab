"""`penstock quantize`: what it makes can be served, is not written over anything, and is measured truly."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_folder import smollm2_folder  # noqa: F401  # a fixture


def told(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "quantize", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr


def answer(model: Path, engine: str, cache: Path) -> list[int]:
    """Eight greedy tokens of an engine that loads the model."""
    from penstock.core.language import Generation, Sampling
    from penstock.language.files import look
    from penstock.language.tokenizer import open_tokenizer
    from penstock.runtime.engines import EngineContext
    from penstock.runtime.language.choice import choose

    files = look(model)
    prompt = tuple(open_tokenizer(files).encode("The ferry to the island leaves twice a day, at"))

    async def run() -> list[int]:
        context = EngineContext("m", threads=2, context_tokens=256, max_running=1, cache=cache)
        loaded = choose(files, "cpu", engine).load(files, context)
        asked = Generation("1", prompt, 8, Sampling(temperature=0, ignore_eos=True))
        found = [token async for delta in loaded.generate(asked) for token in delta.token_ids]
        await loaded.close()
        return found

    return asyncio.run(run())


def test_a_gguf_file_is_made_that_loads_and_answers(smollm2: Path, tmp_path: Path) -> None:
    from penstock.language import gguf

    out = tmp_path / "small.gguf"
    sizes = json.loads(told(smollm2, out, "--to", "q8_0", "--no-measure", "--json"))
    assert sizes["after"]["size_bytes"] == out.stat().st_size and os.listdir(tmp_path) == [out.name]
    before, after = gguf.read_header(smollm2), gguf.read_header(out)
    assert {tensor.type for tensor in after.tensors} == {"Q8_0", "F32"}
    assert [(tensor.name, tensor.shape) for tensor in after.tensors] == [
        (one.name, one.shape) for one in before.tensors
    ]
    assert after.values["general.file_type"] == 7
    kept = {name for name in before.values if name not in ("general.file_type", "general.quantization_version")}
    assert all(after.values[name] == before.values[name] for name in kept)
    assert len(answer(out, "llamacpp", tmp_path)) == 8


def test_nothing_is_written_over(smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "there.gguf"
    out.write_text("mine")
    assert "is there already" in told(smollm2, out, "--to", "q8_0", code=1)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "to", "words"),
    [("o.gguf", "q4_k", "did you mean 'q4_k_m'"), ("o", "q8_0", "must be called .gguf"), ("no/o.gguf", "q8_0", "no folder")],
)  # fmt: skip
def test_what_is_wrong_is_named(smollm2: Path, tmp_path: Path, out: str, to: str, words: str) -> None:
    assert words in told(smollm2, tmp_path / out, "--to", to, code=2)
    assert os.listdir(tmp_path) == []


# Of the same weights in f32 by transformers 5.23 and torch 2.13, pieces of 512 tokens, the first of each left out.
REFERENCE = 27.4558


@pytest.mark.engines
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("to", "most"), [("q8_0", 0.01), ("q4_k_m", 0.15), ("int8", 0.02), ("int4", 0.25)])
def test_perplexity_is_that_of_the_model(smollm2: Path, tmp_path: Path, to: str, most: float) -> None:
    engine = "openvino" if to.startswith("int") else "llamacpp"
    out = tmp_path / ("made" if engine == "openvino" else "made.gguf")
    found = json.loads(told(smollm2, out, "--to", to, "--json"))
    before, after = found["before"], found["after"]
    assert before["perplexity"] == pytest.approx(REFERENCE, rel=0.01)
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=most)
    assert after["engine"] == engine and after["tokens"] == 1848 and after["tokens_per_s"] > 1
    assert os.listdir(tmp_path) == [out.name]
    if engine == "openvino":
        assert_served_alike(smollm2, out, tmp_path)


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_folder_becomes_smaller(smollm2_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "made"
    found = json.loads(told(smollm2_folder, out, "--to", "int4", "--json"))
    assert found["before"]["perplexity"] == pytest.approx(REFERENCE, rel=0.01)
    assert found["after"]["perplexity"] == pytest.approx(found["before"]["perplexity"], rel=0.25)
    assert found["after"]["size_bytes"] < 0.4 * found["before"]["size_bytes"]
    assert_served_alike(smollm2_folder, out, tmp_path)


def assert_served_alike(source: Path, out: Path, cache: Path) -> None:
    """The folder has the file's tokens and template, and answers."""
    from penstock.language.files import look
    from penstock.language.templates import sources
    from penstock.language.tokenizer import open_tokenizer

    for text in ("Hello, world! 1234 äöü", "<|im_start|>user\nhi<|im_end|>"):
        assert open_tokenizer(look(out)).encode(text) == open_tokenizer(look(source)).encode(text)
    assert sources(look(out)) == sources(look(source))
    assert open_tokenizer(look(out)).end_ids == open_tokenizer(look(source)).end_ids
    assert len(answer(out, "openvino", cache)) == 8
