"""The transformers engine on real weights, compared with the library driven by itself.

What every engine owes is in tests/conformance/test_engines.py; both run with --engines, where the library is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio
from huggingface_folder import smollm2_folder  # noqa: F401  # a fixture
from running_server import ServerFactory
from worker_processes import kill_workers

from penstock.core.errors import DeadlineExceeded, LoadError
from penstock.core.language import Format, Generation, Sampling
from penstock.language import files
from penstock.language.grammars.compiling import Compiler
from penstock.language.tokenizer import open_tokenizer
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.transformers import plug

transformers: Any = pytest.importorskip("transformers")
torch: Any = pytest.importorskip("torch")
pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]
module_loop = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(temperature=0)
# "What is the capital of France?" in the model's template and tokens, up to its answer.
PROMPT = (
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
)  # fmt: skip
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                   "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2_folder: Path) -> AsyncIterator[Any]:  # noqa: F811
    context = EngineContext("m", threads=2, context_tokens=2048)
    found = await asyncio.to_thread(plug.load, files.look(smollm2_folder), context)
    yield found
    await found.close()


async def said(engine: Any, **changes: Any) -> list[int]:
    ask = dataclasses.replace(Generation("g", PROMPT, 20, GREEDY), **changes)
    return [token async for delta in engine.generate(ask) for token in delta.token_ids]


@pytest.fixture(scope="module")
def reference(smollm2_folder: Path) -> Any:  # noqa: F811
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype="float32").eval()


@module_loop
async def test_greedy_is_what_the_library_says(engine: Any, reference: Any) -> None:
    for prompt in (PROMPT, PROMPT[21:], PROMPT * 3):
        ids = torch.tensor([prompt])
        told = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        assert await said(engine, token_ids=prompt, max_tokens=24) == told[0, len(prompt) :].tolist()


@module_loop
async def test_log_probabilities_of_prompt_and_answer_are_the_library_s(engine: Any, reference: Any) -> None:
    prompt = PROMPT * 5  # more than one step of the prompt's
    ask = Generation("g", prompt, 4, GREEDY, logprobs=3, prompt_logprobs=2)
    deltas = [delta async for delta in engine.generate(ask)]
    tokens = [token for delta in deltas for token in delta.token_ids]
    with torch.no_grad():
        logits = reference(torch.tensor([[*prompt, *tokens]])).logits[0].float()
    whole = torch.log_softmax(logits, -1)
    told = deltas[0].prompt_logprobs
    assert told[0] is None and len(told) == len(prompt)
    for at, entry in enumerate(told[1:], 1):
        assert entry.token_id == prompt[at]
        assert entry.logprob == pytest.approx(float(whole[at - 1, prompt[at]]), abs=2e-3)
    for at, delta in enumerate(deltas):
        (entry,) = delta.logprobs
        best = whole[len(prompt) - 1 + at].topk(3)
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=2e-3)


@module_loop
async def test_output_is_valid_under_its_schema(engine: Any, smollm2_folder: Path) -> None:  # noqa: F811
    compiled = Compiler().compile_format(Format("json_schema", SCHEMA))
    words = open_tokenizer(files.look(smollm2_folder))
    assert compiled is not None
    for seed in range(3):
        tokens = await said(
            engine, grammar=compiled.grammar, max_tokens=200, sampling=Sampling(temperature=1, seed=seed)
        )  # fmt: skip
        jsonschema.validate(json.loads(words.decode(tokens)), SCHEMA)


@module_loop
async def test_hundred_cancels_leave_no_thread_and_no_sequence(engine: Any) -> None:
    before, chance = await said(engine), random.Random(3)

    async def leave() -> None:
        left = chance.choice((0, 1, 3))
        async with aclosing(engine.generate(Generation("g", PROMPT, 60, GREEDY))) as deltas:
            async for _ in deltas:
                left -= 1
                if left < 0:
                    return

    for _ in range(10):
        await asyncio.gather(*(leave() for _ in range(10)))
    until = time.monotonic() + 20
    while (load := engine.load()).running or load.waiting:
        assert time.monotonic() < until, load
        await asyncio.sleep(0.01)
    assert engine.load().kv_used == 0
    assert sum(thread.name.startswith("transformers") for thread in threading.enumerate()) <= engine.info.max_running
    assert await said(engine) == before


@module_loop
async def test_deadline_ends_an_answer(engine: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        await said(
            engine, max_tokens=1500, deadline=time.monotonic() + 0.5, sampling=Sampling(temperature=0, ignore_eos=True)
        )  # fmt: skip


def test_adapters_and_unknown_options_are_refused(smollm2_folder: Path) -> None:  # noqa: F811
    found = files.look(smollm2_folder)
    with pytest.raises(LoadError, match="'pooling'"):
        plug.load(found, EngineContext("m", options={"poolling": "mean"}))
    with pytest.raises(LoadError, match="LoRA"):
        plug.load(found, EngineContext("m", adapters={"a": smollm2_folder}))


def test_pickled_weights_are_not_opened(smollm2_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    for path in smollm2_folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / path.name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be read")
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(LoadError):
        plug.load(files.look(tmp_path), EngineContext("m"))


@module_loop
async def test_embeddings_are_the_library_s(minilm: Path) -> None:
    engine: Any = await asyncio.to_thread(plug.load, files.look(minilm), EngineContext("e", threads=2))
    words = open_tokenizer(files.look(minilm))
    texts = ["A cat sits on the mat.", "Ein Hund bellt.", "stocks fell sharply today " * 20]
    vectors = await engine.embed([words.encode(text) for text in texts])
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([words.encode(text)])).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((hidden / hidden.norm()).tolist(), abs=1e-4)
        assert math.fsum(value * value for value in vector) == pytest.approx(1, abs=1e-5)
    assert engine.info.embedding_size == 384 and engine.info.embeds and not engine.info.generates
    await engine.close()


def _classifier(minilm: Path, folder: Path, labels: int) -> Path:
    """A BERT with random weights of its own and MiniLM's words; with one label it ranks."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("labels", [1, 3])
@module_loop
async def test_scores_and_classes_are_the_library_s(minilm: Path, tmp_path: Path, labels: int) -> None:
    folder = _classifier(minilm, tmp_path, labels)
    engine: Any = await asyncio.to_thread(plug.load, files.look(folder), EngineContext("c", threads=1))
    assert (engine.info.ranks, engine.info.classifies) == (labels == 1, labels == 3)
    words, tokenizer = open_tokenizer(files.look(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = [("who sits there", "a cat sits on the mat"), ("price", "stocks fell"), ("a", "a much longer text " * 9)]
    ids = [(words.encode(a, False), words.encode(b, False) if labels == 1 else []) for a, b in pairs]
    for (first, second), values in zip(pairs, await engine.score(ids), strict=True):
        asked = tokenizer(first, second if labels == 1 else None, return_tensors="pt")
        with torch.no_grad():
            logits = model(**asked).logits[0]
        told = torch.sigmoid(logits) if labels == 1 else torch.softmax(logits, -1)
        assert values == pytest.approx(told.tolist(), abs=1e-4)
    await engine.close()


def test_answer_whose_worker_is_killed_ends_with_an_error(
    server: ServerFactory, smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.delenv("PENSTOCK_TEST_HF_MODEL", raising=False)  # a server refuses variables that it does not know
    served = server({"m": {"path": str(smollm2_folder), "options": {"engine": "transformers", "context_tokens": 1024}}})
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True}
    events = []
    with httpx.stream("POST", f"{served.http}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 3:
                    kill_workers(served.pid)
    assert any("error" in json.loads(event) for event in events if event != "[DONE]"), events[-3:]
