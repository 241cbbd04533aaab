"""The vLLM engine on real weights, compared with the library driven by itself; run where vLLM's CPU build is.

What every engine owes is in tests/conformance/test_engines.py; both take minutes and run with --engines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio
import running_server
from huggingface_folder import smollm2_folder  # noqa: F401  # a fixture
from running_server import ServerFactory
from worker_processes import children, kill_workers, workers

from penstock.core.errors import LoadError
from penstock.core.language import Format, Generation, Sampling
from penstock.language import files
from penstock.language.grammars.compiling import Compiler
from penstock.language.tokenizer import open_tokenizer
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.vllm import plug, settings

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
pytestmark = pytest.mark.timeout(400)
module_loop = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(temperature=0)
# "What is the capital of France?" in the model's template and tokens, up to its answer.
PROMPT = (
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
)  # fmt: skip
# transformers 5.23 in float32 with the same weights: its own greedy answer, and its log-probabilities.
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30, 2]
REFERENCE = (-1.8643, -0.0198, -0.0114, -0.0111, -0.0385, -0.0488, -0.5703, -0.2453)
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2_folder: Path) -> AsyncIterator[Any]:  # noqa: F811
    context = EngineContext("m", threads=2, context_tokens=2048, max_running=16)
    found = await asyncio.to_thread(plug.load, files.look(smollm2_folder), context)
    yield found
    await found.close()


async def said(engine: Any, **changes: Any) -> list[int]:
    ask = dataclasses.replace(Generation("g", PROMPT, 20, GREEDY), **changes)
    return [token async for delta in engine.generate(ask) for token in delta.token_ids]


@needs_vllm
@pytest.mark.engines
@module_loop
async def test_greedy_and_log_probabilities_are_those_of_the_weights(engine: Any) -> None:
    ask = Generation("g", PROMPT, 20, GREEDY, logprobs=3, prompt_logprobs=1)
    deltas = [delta async for delta in engine.generate(ask)]
    assert [token for delta in deltas for token in delta.token_ids] == ANSWER
    likely = [entry for delta in deltas for entry in delta.logprobs]
    assert [entry.logprob for entry in likely] == pytest.approx(REFERENCE, abs=5e-3)
    assert all(len(entry.top) == 3 for entry in likely)
    told = deltas[0].prompt_logprobs
    assert told[0] is None and [entry.token_id for entry in told[1:]] == list(PROMPT[1:])


@needs_vllm
@pytest.mark.engines
@module_loop
async def test_greedy_is_what_the_library_says(engine: Any) -> None:
    from vllm import SamplingParams

    for prompt in (PROMPT[21:], PROMPT * 3):
        last: Any = None
        parameters = SamplingParams(temperature=0, max_tokens=24)
        async for output in engine._engine.generate(
            {"prompt_token_ids": list(prompt)}, parameters, f"own-{len(prompt)}"
        ):
            last = output
        assert await said(engine, token_ids=prompt, max_tokens=24) == list(last.outputs[0].token_ids)


@needs_vllm
@pytest.mark.engines
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


@needs_vllm
@pytest.mark.engines
@module_loop
async def test_hundred_cancels_leave_no_sequence_and_no_block(engine: Any) -> None:
    before, chance = await said(engine), random.Random(3)

    async def leave() -> None:
        left = chance.choice((0, 1, 3))
        async with aclosing(engine.generate(Generation("g", PROMPT, 60, GREEDY))) as deltas:
            async for _ in deltas:
                left -= 1
                if left < 0:
                    return

    for _ in range(5):
        await asyncio.gather(*(leave() for _ in range(20)))
    assert await said(engine) == before
    assert engine._engine.get_num_unfinished_requests() == 0
    ask = Generation("g", PROMPT, 40, Sampling(temperature=0, ignore_eos=True))
    loads = [engine.load() async for _ in engine.generate(ask)]
    # vLLM's own count of its cache: this one sequence, rounded up to blocks.
    assert loads[-2].kv_used <= len(PROMPT) + 40 + 2 * engine._engine.vllm_config.cache_config.block_size
    assert (engine.load().running, engine.load().waiting) == (0, 0)


@needs_vllm
@pytest.mark.engines
def test_killed_worker_ends_the_answer_with_an_error_and_takes_vllm_along(
    server: ServerFactory, smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(running_server, "START_S", 240.0)
    monkeypatch.delenv("PENSTOCK_TEST_HF_MODEL", raising=False)  # a server refuses variables that it does not know
    options = {"engine": "vllm", "context_tokens": 1024, "max_running": 4}
    served = server({"m": {"path": str(smollm2_folder), "options": options}})
    below = [child for worker in workers(served.pid) for child in children(worker)]
    assert below
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True}
    events = []
    with httpx.stream("POST", f"{served.http}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 3:
                    kill_workers(served.pid)
    assert any("error" in json.loads(event) for event in events if event != "[DONE]"), events[-3:]
    until = time.monotonic() + 20
    while left := [pid for pid in below if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_options_become_arguments_of_vllm(tmp_path: Path) -> None:
    found = files.ModelFiles(tmp_path, "huggingface", "generate", "llama")
    context = EngineContext(
        "m", "cuda:1", 0.5, max_running=8, kv_cache_bytes=1 << 30, dtype="bf16",
        options={"tensor_parallel": 2, "kv_transfer_config": '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'},
    )  # fmt: skip
    told = settings.arguments(found, context)
    assert told["gpu_memory_utilization"] == 0.45 and told["tensor_parallel_size"] == 2
    assert told["dtype"] == "bfloat16" and told["max_num_seqs"] == 8 and told["kv_cache_memory_bytes"] == 1 << 30
    assert told["kv_transfer_config"]["kv_connector"] == "NixlConnector"
    assert told["load_format"] == "safetensors" and told["trust_remote_code"] is False
    assert told["enforce_eager"] is False


@pytest.mark.parametrize(
    ("options", "said_so"),
    [({"tensor_paralel": 2}, "tensor_parallel"), ({"tensor_parallel": 0}, "above 0"), ({"eager": 1}, "true or false"),
     ({"kv_transfer_config": "{}"}, "kv_connector")],
)  # fmt: skip
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, Any], said_so: str) -> None:
    with pytest.raises(LoadError, match=said_so):
        settings.arguments(files.ModelFiles(tmp_path, "huggingface", "generate"), EngineContext("m", options=options))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    assert "gguf" in plug.fit(files.ModelFiles(tmp_path, "gguf", "generate"))
    assert "transformers" in plug.fit(files.ModelFiles(tmp_path, "huggingface", "rank"))
