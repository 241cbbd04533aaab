"""The engine `llamacpp`: embeddings against BERT in numpy, and LoRA adapters chosen by requests."""

from __future__ import annotations

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from gguf_models import write_bert, write_lora
from running_server import ServerFactory

from penstock.core.errors import TooLarge
from penstock.core.language import Generation, Sampling
from penstock.language import files
from penstock.runtime.engines import Engine, EngineContext
from penstock.runtime.engines.llamacpp import plug

PROMPT = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)
Floats = np.ndarray[Any, np.dtype[np.float32]]


def bert(folder: Path, ids: list[int]) -> Floats:
    """The mean of a BERT's last hidden states, of length 1. Source: https://arxiv.org/abs/1810.04805"""
    from safetensors.numpy import load_file

    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    heads, size = config["num_attention_heads"], config["hidden_size"]

    def linear(name: str, x: Floats) -> Floats:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Floats) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def split(x: Floats) -> Floats:
        return x.reshape(len(ids), heads, size // heads).transpose(1, 0, 2)

    words, places = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
    x = norm(
        "embeddings.LayerNorm", words[ids] + places[: len(ids)] + weights["embeddings.token_type_embeddings.weight"][0]
    )
    erf = np.vectorize(math.erf)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        query, key, value = (split(linear(f"{at}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(size // heads)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (shares / shares.sum(-1, keepdims=True)) @ value
        seen = seen.transpose(1, 0, 2).reshape(len(ids), size)
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", seen))
        wide = linear(f"{at}.intermediate.dense", x)
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", wide))
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def test_embeddings_are_those_of_the_model(minilm: Path, tmp_path: Path) -> None:
    path = tmp_path / "minilm.gguf"
    write_bert(minilm, path)
    found = files.look(path)
    assert found.task == "embed" and not plug.fit(found)
    engine = plug.load(found, EngineContext("m", threads=1, max_running=8))
    chance = np.random.default_rng(3)
    texts = [[101, *chance.integers(1000, 30000, length).tolist(), 102] for length in (1, 2, 7, 60, *[5] * 60)]

    async def embed() -> tuple[list[list[float]], list[list[list[float]]]]:
        try:
            with pytest.raises(TooLarge, match="takes 512"):
                await engine.embed([[101] * 513])
            together = await engine.embed(texts)
            apart = await asyncio.gather(*(engine.embed([text]) for text in texts[:8]))  # more than compute at once
            return together, apart
        finally:
            await engine.close()

    together, apart = asyncio.run(embed())
    assert np.shape(together) == (64, engine.info.embedding_size) == (64, 384)
    for text, vector in zip(texts[:6], together, strict=False):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
        assert float(np.dot(vector, bert(minilm, text))) > 0.999
    for alone, vector in zip(apart, together, strict=False):
        assert float(np.dot(alone[0], vector)) > 0.9999


def test_generating_model_embeds_when_told_how_to_pool(smollm2: Path) -> None:
    engine = plug.load(
        files.look(smollm2), EngineContext("m", threads=1, context_tokens=256, options={"pooling": "mean"})
    )

    async def embed() -> list[list[float]]:
        try:
            return await engine.embed([PROMPT, PROMPT[:9], PROMPT])
        finally:
            await engine.close()

    vectors = asyncio.run(embed())
    assert engine.info.embeds and not engine.info.generates
    assert np.shape(vectors) == (3, engine.info.embedding_size)
    assert np.dot(vectors[0], vectors[2]) == pytest.approx(1, abs=1e-3) and np.dot(vectors[0], vectors[1]) < 0.999


def test_adapters_are_chosen_by_requests_and_do_not_mix(smollm2: Path, tmp_path: Path) -> None:
    paths = {"polite": tmp_path / "polite.gguf", "curt": tmp_path / "curt.gguf"}
    for seed, path in enumerate(paths.values()):
        write_lora(smollm2, path, seed)
    engine = plug.load(
        files.look(smollm2),
        EngineContext("m", threads=1, context_tokens=512, max_running=6, prefix_cache=True, adapters=paths),
    )
    assert engine.info.adapters == "request" and engine.info.adapter_names == ("polite", "curt")

    async def compare(engine: Engine) -> None:
        async def said(adapter: str) -> list[int]:
            ask = Generation("g", PROMPT, 10, Sampling(temperature=0, ignore_eos=True), adapter=adapter)
            return [token async for delta in engine.generate(ask) for token in delta.token_ids]

        try:
            alone = {name: await said(name) for name in ("", "polite", "curt")}
            assert len({tuple(tokens) for tokens in alone.values()}) == 3
            # They differ from the first token on. Two of one adapter share a step, which may turn a near tie later.
            assert await asyncio.gather(*map(said, alone)) == list(alone.values())
            names = [*alone, *reversed(alone)]
            together = await asyncio.gather(*map(said, names))
            assert [tokens[:6] for tokens in together] == [alone[name][:6] for name in names]
        finally:
            await engine.close()

    asyncio.run(compare(engine))


def test_adapters_are_models_of_their_own_over_http(server: ServerFactory, smollm2: Path, tmp_path: Path) -> None:
    """One that is nothing says what the base says, one that is large something else, also when all share a step."""
    write_lora(smollm2, tmp_path / "nothing.gguf", 1, size=0.0)
    write_lora(smollm2, tmp_path / "large.gguf", 2)
    write_lora(smollm2, tmp_path / "other.gguf", 3)
    adapters = {f"lora.{name}": str(tmp_path / f"{name}.gguf") for name in ("nothing", "large", "other")}
    options = {"engine": "llamacpp", "context_tokens": 512, "max_running": 8, **adapters}
    running = server({"base": {"path": str(smollm2), "options": options}})
    client = openai.OpenAI(base_url=running.http + "/v1", api_key="none", timeout=100, max_retries=0)
    names = ["base", "nothing", "large", "other"]
    assert set(names) <= {model.id for model in client.models.list()}

    def said(name: str) -> str:
        answer = client.completions.create(
            model=name, prompt="The capital of France is", max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.model.split(":")[0] in names
        return answer.choices[0].text

    alone = {name: said(name) for name in names}
    assert alone["nothing"] == alone["base"]
    assert len({alone[name] for name in ("base", "large", "other")}) == 3
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(said, names * 2))
    # Sums in another order may turn a near tie after some tokens, never the whole answer.
    beginnings = [alone[name][:4] for name in names * 2]
    assert [text[:4] for text in together] == beginnings
    with pytest.raises(openai.NotFoundError, match="nobody"):
        said("nobody")
