"""A model that the preferred engine cannot load is loaded with the next one, unless the owner named the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from gguf_models import write_llama
from running_server import ServerFactory

from penstock.core.errors import LoadError
from penstock.core.language import Generation, Sampling
from penstock.language import files
from penstock.runtime.engines import Engine, EngineContext
from penstock.runtime.language import choice

pytest.importorskip("openvino_genai")
pytest.importorskip("xllamacpp")


def said(engine: Engine) -> list[int]:
    """Four tokens of the engine, which is closed."""

    async def run() -> list[int]:
        asked = Generation("g", (1, 504, 600, 700), 4, Sampling(temperature=0, ignore_eos=True))
        found = [token async for delta in engine.generate(asked) for token in delta.token_ids]
        await engine.close()
        return found

    return asyncio.run(run())


def test_file_that_the_converter_refuses_is_loaded_as_it_is(
    smollm2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "yarn.gguf"
    write_llama(smollm2, path, rope__scaling__type="yarn", rope__scaling__factor=1.0)
    context = EngineContext("m", cache=tmp_path / "cache", kv_cache_bytes=1 << 22)
    engine = choice.load(files.look(path), context)
    reason = "with llamacpp, because of openvino: its rotary embedding is scaled in the way 'yarn'"
    assert engine.info.engine == "llamacpp" and engine.info.note == reason
    assert f"yarn.gguf is loaded {reason}" in capfd.readouterr().out
    assert len(said(engine)) == 4
    with pytest.raises(LoadError, match=r"engine 'openvino' cannot load yarn.gguf: its rotary embedding is scaled"):
        choice.load(files.look(path), context, "openvino")


def test_conversion_that_fails_is_no_end_of_the_model(
    smollm2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, occupied = tmp_path / "model.gguf", tmp_path / "occupied"
    write_llama(smollm2, path)
    occupied.write_text("no folder")
    context = EngineContext("m", cache=occupied, kv_cache_bytes=1 << 22)
    with pytest.raises(LoadError, match="cache of converted models"):
        choice.load(files.look(path), context, "openvino")
    engine = choice.load(files.look(path), context)
    assert engine.info.engine == "llamacpp" and "openvino: the cache of converted models" in engine.info.note
    assert "model.gguf: openvino cannot load it: the cache of converted models" in capfd.readouterr().out
    assert len(said(engine)) == 4


def test_owners_mistake_is_told_and_no_other_engine_is_taken(smollm2: Path, tmp_path: Path) -> None:
    for context in (
        EngineContext("m", cache=tmp_path, dtype="int3"),
        EngineContext("m", cache=tmp_path, options={"chunk_token": 5}),
    ):
        with pytest.raises(LoadError, match=r"int3|did you mean 'chunk_tokens'"):
            choice.load(files.look(smollm2), context, check_memory=False)


def test_server_tells_which_engine_it_took_and_why(smollm2: Path, tmp_path: Path, server: ServerFactory) -> None:
    path = tmp_path / "yarn.gguf"
    write_llama(smollm2, path, rope__scaling__type="yarn", rope__scaling__factor=1.0)
    running = server({"yarn": str(path)})
    asked = {"model": "yarn", "prompt": "The", "max_tokens": 3}
    answer = httpx.post(f"{running.http}/v1/completions", json=asked, timeout=30)
    assert answer.status_code == 200, answer.text
    assert running.log is not None
    log = "".join(running.lines) + running.log.read_text()
    assert "yarn.gguf is loaded with llamacpp, because of openvino" in log
