"""The OpenVINO engine on real weights: converted here, and compared with the library driven by itself.

What every engine owes is in tests/conformance/test_engines.py; both take half a minute and run with --engines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openvino_graphs import log_probabilities

from penstock.core.errors import InvalidInput, LoadError
from penstock.core.language import Generation, Grammar, Sampling
from penstock.language import files
from penstock.runtime import conversion
from penstock.runtime.conversion import cache
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.openvino import plug

pytest.importorskip("openvino_genai")
pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

GREEDY = Sampling(temperature=0)
# "What is the capital of France?" in the model's template and tokens, up to its answer.
PROMPT = (
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
)  # fmt: skip
# transformers 5.23 in float32 with the same weights, rounded to bf16: log-probabilities of its own greedy answer.
ANSWER = (504, 3575, 282, 4649, 314, 7042, 30, 2)
REFERENCE = (-1.8643, -0.0198, -0.0114, -0.0111, -0.0385, -0.0488, -0.5703, -0.2453)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EngineContext:
    return EngineContext("m", threads=2, context_tokens=2048, cache=tmp_path_factory.mktemp("cache"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2: Path, context: EngineContext) -> AsyncIterator[Any]:
    found = await asyncio.to_thread(plug.load, files.look(smollm2), context)
    yield found
    await found.close()


async def said(engine: Any, **changes: Any) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    logprobs: list[float] = []
    async for delta in engine.generate(dataclasses.replace(Generation("g", PROMPT, 20, GREEDY, logprobs=0), **changes)):
        tokens += delta.token_ids
        logprobs += [entry.logprob for entry in delta.logprobs]
    return tokens, logprobs


@pytest.mark.parametrize(("dtype", "most"), [("f16", 0.02), ("int8", 0.2)])
async def test_converted_weights_say_what_the_originals_say(
    smollm2: Path, context: EngineContext, dtype: str, most: float
) -> None:
    folder = await asyncio.to_thread(conversion.convert, files.look(smollm2), dtype, context.cache, print)
    found = await asyncio.to_thread(log_probabilities, folder, [*PROMPT, *ANSWER])
    logprobs = [found[len(PROMPT) - 1 + at, token] for at, token in enumerate(ANSWER)]
    assert logprobs == pytest.approx(REFERENCE, abs=most)  # the reader of quantised blocks is off by 0.96


async def test_greedy_answer_is_the_librarys_own(engine: Any, smollm2: Path, context: EngineContext) -> None:
    import numpy
    import openvino
    import openvino_genai

    from penstock.runtime.conversion.minimal_tokenizer import minimal_tokenizer

    folder = conversion.convert(files.look(smollm2), "", context.cache, print)
    tokenizer = minimal_tokenizer([b"a", b"b", b"c"], 2)
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, tokenizer, openvino_genai.SchedulerConfig(), "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=80, ignore_eos=True)
    handle = pipeline.add_request(1, openvino.Tensor(numpy.array([PROMPT], numpy.int64)), config)
    own: list[int] = []
    while pipeline.has_non_finished_requests():
        pipeline.step()
        while handle.can_read():
            own += handle.read()[0].generated_ids
    ours, _ = await said(engine, max_tokens=80, sampling=Sampling(temperature=0, ignore_eos=True))
    assert ours == own


async def test_stop_ids_are_met_also_when_the_end_is_ignored(engine: Any) -> None:
    endless = Sampling(temperature=0, ignore_eos=True)
    whole, _ = await said(engine, sampling=endless)
    tokens, logprobs = await said(engine, stop_token_ids=(whole[3],), sampling=endless)
    assert tokens == whole[: whole.index(whole[3]) + 1] and len(logprobs) == len(tokens)


async def test_grammar_that_does_not_compile_is_refused_and_others_go_on(engine: Any) -> None:
    free = asyncio.create_task(said(engine, max_tokens=60, sampling=Sampling(temperature=0, ignore_eos=True)))
    await asyncio.sleep(0)
    for kind, text in (("regex", "a("), ("ebnf", "root ::= absent")):
        with pytest.raises(InvalidInput, match="does not compile"):
            await said(engine, grammar=Grammar(kind, text))  # type: ignore[arg-type]
    assert len((await free)[0]) == 60
    tokens, _ = await said(engine, grammar=Grammar("regex", "[0-9]{3}"))
    assert 1 <= len(tokens) <= 4


async def test_streams_go_on_while_a_grammar_compiles(engine: Any) -> None:
    words = " | ".join(f'"{word}" [a-z]{{1,9}} "y"' for word in range(60))
    gone_on: list[float] = []

    begun = asyncio.Event()

    async def stream() -> None:
        async for _ in engine.generate(Generation("free", PROMPT, 400, Sampling(temperature=0, ignore_eos=True))):
            gone_on.append(time.monotonic())  # it is read meanwhile
            begun.set()

    free = asyncio.create_task(stream())
    await begun.wait()
    began = time.monotonic()
    await said(engine, max_tokens=1, grammar=Grammar("ebnf", f"root ::= {words}"))
    ended = time.monotonic()
    free.cancel()
    meanwhile = [began, *(at for at in gone_on if began < at < ended), ended]
    gaps = [later - at for at, later in itertools.pairwise(meanwhile)]
    print(f"{ended - began:.3f} s, {len(meanwhile) - 2} tokens of the neighbour, longest gap {max(gaps):.3f} s")
    assert len(meanwhile) - 2 >= 3  # compiled on the loop, it lets through one: the step of its own token
    assert max(gaps) < 0.6 * (ended - began)


@pytest.mark.parametrize("cached", [False, True])
async def test_seed_repeats_an_answer_and_choices_differ(
    smollm2: Path, context: EngineContext, engine: Any, cached: bool
) -> None:
    one = dataclasses.replace(context, prefix_cache=cached, kv_cache_bytes=64 << 20)
    found = engine if cached else await asyncio.to_thread(plug.load, files.look(smollm2), one)
    try:
        assert found.info.seeded is not cached
        asks = [Sampling(temperature=1.0, seed=seed, ignore_eos=True) for seed in (7, 8, 9, 7)]
        alone = [(await said(found, sampling=ask))[0] for ask in asks]
        if not cached:
            assert alone[0] == alone[3]
            together = await asyncio.gather(*(said(found, sampling=ask) for ask in asks))
            assert [tokens for tokens, _ in together] == alone
        # `n` choices of one request are these: its seed, and those that follow it.
        assert len({tuple(tokens) for tokens in alone[:3]}) == 3
    finally:
        if not cached:
            await found.close()


async def test_cancels_free_all_blocks(engine: Any) -> None:
    chance = random.Random(1)

    async def blocks_of_one() -> int:
        async for _ in (one := engine.generate(Generation("one", PROMPT, 4, GREEDY))):
            used = engine.load().kv_used
            await one.aclose()
        return used  # type: ignore[no-any-return]

    async def cancel() -> None:
        prompt = tuple(chance.randrange(300, 40000) for _ in range(40))
        one = engine.generate(Generation("cancelled", prompt, 200, Sampling(temperature=1.0)))
        for _ in range(chance.randrange(0, 4)):
            await anext(one)
        await one.aclose()

    before = await blocks_of_one()
    for _ in range(10):
        await asyncio.gather(*(cancel() for _ in range(10)))
    await said(engine)  # one more step at least
    assert await blocks_of_one() == before
    until = time.monotonic() + 20
    while engine.load().running:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_conversion_is_found_again_and_broken_one_made_anew(
    engine: Any, smollm2: Path, context: EngineContext
) -> None:
    found = files.look(smollm2)
    folder = conversion.convert(found, "", context.cache, pytest.fail)
    weights = folder / "openvino_model.bin"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:1000])
    told: list[str] = []
    assert not cache.whole(folder)
    assert await asyncio.to_thread(conversion.convert, found, "", context.cache, told.append) == folder
    assert told and weights.stat().st_size == len(kept)


async def test_adapters_that_would_be_ignored_are_refused_with_the_reason(
    smollm2: Path, context: EngineContext
) -> None:
    one = dataclasses.replace(context, adapters={"polite": smollm2})
    with pytest.raises(LoadError, match=r"ignore the adapter polite.*llamacpp"):
        plug.load(files.look(smollm2), one)
