"""Hugging Face folders of each architecture that is converted to OpenVINO compute what transformers computes."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from gguf_models import write_llama
from openvino_graphs import log_probabilities
from tiny_language_models import AHEAD, CASES, PROMPT, REFERENCES, write

from penstock.core.errors import LoadError
from penstock.core.language import Generation, Sampling
from penstock.language import files
from penstock.runtime import conversion
from penstock.runtime.engines import EngineContext
from penstock.runtime.language import choice

pytest.importorskip("openvino_genai")
pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(REFERENCES.read_text())
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("case", CASES)
def test_converted_folder_computes_what_transformers_does(
    tmp_path: Path, cache: Path, references: dict[str, Any], case: str
) -> None:
    told = references[case]
    folder = conversion.convert(files.look(write(tmp_path / case, case)), "f16", cache, print)
    found = log_probabilities(folder, [*PROMPT, *told["ahead"]])
    places = {int(at): (token, logprob) for at, (token, logprob) in told["places"].items()}
    places |= {len(PROMPT) - 1 + at: pair for at, pair in enumerate(zip(told["ahead"], told["logprobs"], strict=True))}
    assert len(places) >= AHEAD + 11
    for at, (token, logprob) in places.items():
        assert found[at].argmax() == token
        assert found[at, token] == pytest.approx(logprob, abs=1e-3), at


@pytest.mark.parametrize("case", ["llama-3.1", "qwen3", "phi3"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_smaller_weights_are_served_and_stay_near(
    tmp_path: Path, cache: Path, references: dict[str, Any], case: str, dtype: str
) -> None:
    told = references[case]
    context = EngineContext("m", threads=2, cache=cache, dtype=dtype)

    async def run() -> tuple[str, list[int], list[float]]:
        engine = choice.load(files.look(write(tmp_path / case, case)), context)
        tokens: list[int] = []
        logprobs: list[float] = []
        asked = Generation("g", PROMPT, AHEAD, Sampling(temperature=0, ignore_eos=True), logprobs=0)
        async for delta in engine.generate(asked):
            tokens += delta.token_ids
            logprobs += [entry.logprob for entry in delta.logprobs]
        await engine.close()
        return f"{engine.info.engine} {engine.info.precision}", tokens, logprobs

    served, tokens, logprobs = asyncio.run(run())
    assert served == f"openvino {dtype}" and len(tokens) == AHEAD
    # Random weights suffer more than trained ones: it is the first choice's log-probability that must stay near.
    assert logprobs[0] == pytest.approx(told["logprobs"][0], abs={"int8": 0.2, "int4": 1.5}[dtype])


@pytest.mark.parametrize(
    "changes",
    [{"divisors": 8.0}, {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, {"heads": 3, "size": 48}],
)
def test_file_is_computed_as_llamacpp_does(smollm2: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    write_llama(smollm2, path, **changes)
    prompt = tuple(100 + (at * 37 + 11) % 5000 for at in range(90))

    async def likeliest(engine: str, context: EngineContext) -> tuple[int, float]:
        loaded = choice.load(files.look(path), context, engine)
        asked = Generation("g", prompt, 1, Sampling(temperature=0), logprobs=0)
        (delta,) = [delta async for delta in loaded.generate(asked) if delta.token_ids]
        await loaded.close()
        return delta.token_ids[0], delta.logprobs[0].logprob

    exact = EngineContext("m", threads=2, cache=tmp_path / "cache", dtype="f16", options={"kv_cache": "f32"})
    token, logprob = asyncio.run(likeliest("openvino", exact))
    plain = EngineContext("m", threads=2, options={"kv_type": "f32"})
    assert asyncio.run(likeliest("llamacpp", plain)) == (token, pytest.approx(logprob, abs=0.01))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rms_norm_eps": "small"}, "rms_norm_eps|could not convert"),
        ({"num_hidden_layers": 2}, "has no place"),
        ({"num_hidden_layers": 4}, "failed"),
    ],
)
def test_folder_that_cannot_be_converted_says_why_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = write(tmp_path / "m", "qwen3")
    told = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(LoadError) as raised:
        conversion.convert(files.look(folder), "f16", tmp_path / "cache", print)
    assert re.search(said, raised.value.message)
    assert not [path for path in (tmp_path / "cache" / "openvino").iterdir() if path.is_dir()]
