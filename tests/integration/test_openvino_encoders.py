"""Encoders of the OpenVINO engine: a real one served to the official client, and small ones against plain arithmetic."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from penstock.core.errors import InvalidInput, LoadError, TooLarge
from penstock.language import files
from penstock.language.tokenizer import open_tokenizer
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.openvino import plug

pytest.importorskip("openvino")
pytestmark = pytest.mark.timeout(120)

# transformers 5.23 with torch in float32, mean of the last hidden states, length 1: the first six numbers.
TEXTS = ("", "Hello world", "Paris is the capital of France. " * 20)
REFERENCE: Any = json.loads((Path(__file__).parent / "minilm_vectors.json").read_text())


def engine_of(path: Path, **changes: Any) -> Any:
    found = files.look(path)
    assert plug.fit(found) == ""
    return plug.load(found, EngineContext("m", threads=2, **changes))


def embedded(engine: Any, batch: list[list[int]]) -> np.ndarray[Any, Any]:
    async def once() -> Any:
        try:
            return await engine.embed(batch)
        finally:
            await engine.close()

    return np.array(asyncio.run(once()))


@pytest.mark.parametrize(("dtype", "least"), [("", 0.9999), ("f32", 0.999999), ("int8", 0.99)])
def test_vectors_are_those_of_transformers(minilm: Path, dtype: str, least: float) -> None:
    words = open_tokenizer(files.look(minilm))
    vectors = embedded(engine_of(minilm, dtype=dtype), [words.encode(text)[:256] for text in TEXTS])
    assert (vectors * np.array(REFERENCE)).sum(1).min() > least
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_calls_at_the_same_time_are_joined_and_each_gets_its_own(minilm: Path) -> None:
    words = open_tokenizer(files.look(minilm))
    texts = [words.encode("one two three " * (1 + index % 7)) for index in range(60)]
    engine = engine_of(minilm, dtype="f32")

    async def compared() -> tuple[Any, Any]:
        together = await asyncio.gather(*(engine.embed([text]) for text in texts))
        given_up = asyncio.create_task(engine.embed(texts))
        await asyncio.sleep(0)
        given_up.cancel()
        alone = [await engine.embed([text]) for text in texts[:7]]
        with pytest.raises(TooLarge):
            await engine.embed([texts[0], [5] * 257])
        with pytest.raises(InvalidInput):
            await engine.embed([[]])
        with pytest.raises(InvalidInput):
            await engine.embed([[1 << 20]])
        assert engine.load().waiting == 0
        await engine.close()
        return together, alone

    together, alone = asyncio.run(compared())
    assert np.array(together)[:7] == pytest.approx(np.array(alone), abs=1e-4)


# --- a cross-encoder small enough to be computed here by hand ---

WIDTH, HEADS, WORDS = 8, 2, 30522


def tensors(labels: int) -> dict[str, Any]:
    chance = np.random.default_rng(7)

    def some(*shape: int) -> Any:
        return (chance.standard_normal(shape) * 0.4).astype(np.float32)

    found = {
        "embeddings.word_embeddings": some(WORDS, WIDTH), "embeddings.position_embeddings": some(64, WIDTH),
        "embeddings.token_type_embeddings": some(2, WIDTH),
    }  # fmt: skip
    layer = "encoder.layer.0."
    linear = {f"{layer}attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    linear |= {f"{layer}attention.output.dense": (WIDTH, WIDTH), f"{layer}intermediate.dense": (16, WIDTH)}
    linear |= {f"{layer}output.dense": (WIDTH, 16), "pooler.dense": (WIDTH, WIDTH)}
    norms = ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm")
    named = {f"bert.{name}.weight": value for name, value in found.items()}
    for name, shape in linear.items():
        named |= {f"bert.{name}.weight": some(*shape), f"bert.{name}.bias": some(shape[0])}
    for name in norms:
        named |= {f"bert.{name}.weight": 1 + some(WIDTH), f"bert.{name}.bias": some(WIDTH)}
    return named | {"classifier.weight": some(labels, WIDTH), "classifier.bias": some(labels)}


def write(folder: Path, minilm: Path, named: dict[str, Any], **config: Any) -> Path:
    folder.mkdir()
    header: dict[str, Any] = {}
    at = 0
    for name, value in named.items():
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    body = b"".join(value.tobytes() for value in named.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    own = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": 16, "vocab_size": WORDS,
        "max_position_embeddings": 64, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**own, **config}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((minilm / name).read_bytes())
    return folder


def logits(named: dict[str, Any], ids: list[int], second: int) -> Any:
    """BERT as its paper has it, in float64, one text at a time."""
    from math import erf

    def get(name: str) -> Any:
        return named[name if name.startswith("classifier") else f"bert.{name}"].astype(np.float64)

    def linear(value: Any, name: str) -> Any:
        return value @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(value: Any, name: str) -> Any:
        centred = value - value.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * get(f"{name}.weight") + get(
            f"{name}.bias"
        )

    kinds = np.arange(len(ids)) >= second
    value = get("embeddings.word_embeddings.weight")[ids] + get("embeddings.position_embeddings.weight")[: len(ids)]
    value = norm(value + get("embeddings.token_type_embeddings.weight")[kinds.astype(int)], "embeddings.LayerNorm")
    layer = "encoder.layer.0."
    query, key, seen = (
        linear(value, f"{layer}attention.self.{name}").reshape(len(ids), HEADS, -1).swapaxes(0, 1)
        for name in ("query", "key", "value")
    )
    weight = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS))
    mixed = (weight / weight.sum(-1, keepdims=True) @ seen).swapaxes(0, 1).reshape(len(ids), WIDTH)
    value = norm(linear(mixed, f"{layer}attention.output.dense") + value, f"{layer}attention.output.LayerNorm")
    raised = linear(value, f"{layer}intermediate.dense")
    raised = raised * 0.5 * (1 + np.vectorize(erf)(raised / np.sqrt(2)))
    value = norm(linear(raised, f"{layer}output.dense") + value, f"{layer}output.LayerNorm")
    return linear(np.tanh(linear(value[0], "pooler.dense")), "classifier")


PAIRS = [([7592, 2088], [2003, 2204, 2023]), ([7592], list(range(2000, 2040)))]


def scored(path: Path, pairs: Any) -> tuple[Any, Any]:
    engine = engine_of(path, dtype="f32")

    async def once() -> Any:
        try:
            return await engine.score(pairs)
        finally:
            await engine.close()

    return engine.info, np.array(asyncio.run(once()))


def test_cross_encoder_ranks_pairs(minilm: Path, tmp_path: Path) -> None:
    named = tensors(1)
    info, found = scored(write(tmp_path / "ranker", minilm, named, id2label={"0": "LABEL_0"}), PAIRS)
    expected = [logits(named, [101, *a, 102, *b, 102], len(a) + 2)[0] for a, b in PAIRS]
    assert info.ranks and not info.embeds and not info.classifies
    assert found[:, 0] == pytest.approx(1 / (1 + np.exp(-np.array(expected))), abs=1e-4)
    plain = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    _, found = scored(write(tmp_path / "plain", minilm, named, id2label={"0": "LABEL_0"}, **plain), PAIRS)
    assert found[:, 0] == pytest.approx(expected, abs=1e-4)


def test_classifier_gives_the_probability_of_each_label(minilm: Path, tmp_path: Path) -> None:
    named = tensors(3)
    path = write(tmp_path / "judge", minilm, named, id2label={"0": "bad", "1": "so so", "2": "good"})
    info, found = scored(path, [([7592, 2088], [])])
    expected = np.exp(logits(named, [101, 7592, 2088, 102], 4))
    assert info.classifies and info.labels == ("bad", "so so", "good")
    assert found[0] == pytest.approx(expected / expected.sum(), abs=1e-4)


def test_what_would_come_out_wrong_is_refused_by_name(minilm: Path, tmp_path: Path) -> None:
    named = tensors(1)
    for index, (change, told) in enumerate(
        (
            ({"model_type": "deberta"}, "deberta"),
            ({"position_embedding_type": "relative_key"}, "relative_key"),
            ({"hidden_act": "mish"}, "mish"),
            ({"sbert_ce_default_activation_function": "a.Tanh"}, "Tanh"),
        )
    ):
        path = write(tmp_path / str(index), minilm, named, id2label={"0": "LABEL_0"}, **change)
        assert told in plug.fit(files.look(path))
    wider = write(tmp_path / "wider", minilm, named, id2label={"0": "LABEL_0"}, hidden_size=16)
    with pytest.raises(LoadError, match=r"config\.json"):
        engine_of(wider)


# --- served ---


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_folders_are_served(shared_server: Any, minilm: Path, tmp_path: Path) -> None:
    named = tensors(3)
    judge = write(tmp_path / "judge", minilm, named, id2label={"0": "bad", "1": "so so", "2": "good"})
    ranker = write(tmp_path / "ranker", minilm, tensors(1), id2label={"0": "LABEL_0"})
    running = shared_server({"minilm": str(minilm), "judge": str(judge), "ranker": str(ranker)})
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Shares fell sharply on Monday."]
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="minilm", input=texts)
        vectors = np.array([item.embedding for item in answer.data])
        assert vectors.shape == (3, 384) and answer.usage.prompt_tokens > 15
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="judge", input="hi")
    asked = {"model": "minilm", "query": "a cat on a mat", "documents": [texts[2], texts[1]]}
    ranked = post(f"{running.http}/v1/rerank", asked)["results"]
    assert [entry["index"] for entry in ranked] == [1, 0]
    found = post(f"{running.http}/v1/rerank", {**asked, "model": "ranker"})["results"]
    assert all(0 < entry["relevance_score"] < 1 for entry in found) and len(found) == 2
    scores = post(f"{running.http}/v1/score", {"model": "ranker", "text_1": "hello world", "text_2": "this is good"})
    words = open_tokenizer(files.look(minilm))
    one, two = words.encode("hello world", False), words.encode("this is good", False)
    expected = 1 / (1 + np.exp(-logits(tensors(1), [101, *one, 102, *two, 102], len(one) + 2)[0]))
    assert scores["data"][0]["score"] == pytest.approx(expected, abs=0.01)
    told = post(f"{running.http}/v1/classify", {"model": "judge", "input": "hello world"})["data"][0]
    weights = np.exp(logits(named, [101, *one, 102], len(one) + 2))
    assert told["label"] == ("bad", "so so", "good")[int(weights.argmax())]
