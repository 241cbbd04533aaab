"""What every engine of language models owes (`penstock.runtime.engines`), on the same small model: one suite for all.

`remote` takes whole conversations instead of tokens, and has tests of its own (tests/integration/test_remote_engine.py).
An engine that is not installed, or that cannot load what there is, is skipped with its own reason. Those that need
gigabytes or minutes run with --engines.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from penstock import plugins
from penstock.core.errors import DeadlineExceeded, LoadError, PenstockError
from penstock.core.language import Delta, Generation, Grammar, Sampling
from penstock.language import files, gguf
from penstock.language.split_characters import Pieces
from penstock.runtime.engines import Engine, EngineContext, EnginePlug
from penstock.runtime.language.choice import ENGINES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

GREEDY = Sampling(temperature=0)
AT_ONCE = {"echo", "llamacpp"}  # loaded without --engines: in a second, without a conversion
# "The quick brown fox jumps over the lazy dog." and so on, in SmolLM2's own tokens; no near ties follow.
PROMPT = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)
SPOKEN = tuple(b"say:a text that is long enough for whatever is asked of it")


@dataclass(frozen=True)
class Case:
    """One loaded engine. `real` is false for the one without weights, which does what it is told to say."""

    engine: Engine
    prompt: tuple[int, ...]
    pieces: Pieces | None

    @property
    def real(self) -> bool:
        return self.pieces is not None

    def ask(self, **changes: Any) -> Generation:
        plain = Generation("g", self.prompt, 12, GREEDY)
        return dataclasses.replace(plain, **changes)

    async def deltas(self, **changes: Any) -> list[Delta]:
        return [delta async for delta in self.engine.generate(self.ask(**changes))]

    async def tokens(self, **changes: Any) -> list[int]:
        return [token for delta in await self.deltas(**changes) for token in delta.token_ids]

    def text(self, tokens: list[int]) -> str:
        assert self.pieces is not None
        return b"".join(self.pieces.bytes_of(token) for token in tokens).decode()

    async def rests(self) -> None:
        """Returns when nothing runs; fails after 20 s."""
        until = time.monotonic() + 20
        while (load := self.engine.load()).running or load.waiting:
            assert time.monotonic() < until, load
            await asyncio.sleep(0.01)


def needs(case: Case, name: str) -> None:
    if not getattr(case.engine.info, name):
        pytest.skip(f"{case.engine.info.engine} says that it has no {name}")


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[name for name in plugins.names(ENGINES) if name != "remote"]
)
async def case(
    request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Case]:
    name: str = request.param
    if name not in AT_ONCE and not request.config.getoption("--engines"):
        pytest.skip("needs --engines")
    plug: Any = plugins.load(ENGINES, name)
    found = await asyncio.to_thread(_files_for, plug, smollm2, tmp_path_factory)
    if isinstance(found, str):
        pytest.skip(f"{name}: {found}")
    context = EngineContext(
        name, threads=1, context_tokens=2048, max_running=8, cache=tmp_path_factory.getbasetemp() / "converted"
    )
    try:
        engine = await asyncio.to_thread(plug.load, found, context)
    except LoadError as error:
        pytest.skip(f"{name}: {error}")
    if found.kind == "echo":
        yield Case(engine, SPOKEN, None)
    else:
        values = gguf.read_header(smollm2).values
        tokens: Any = values["tokenizer.ggml.tokens"]
        yield Case(engine, PROMPT, Pieces(tokens, str(values["tokenizer.ggml.model"])))
    await engine.close()


def _files_for(plug: EnginePlug, smollm2: Path, folders: pytest.TempPathFactory) -> files.ModelFiles | str:
    """What the engine can load of the model's forms, or why it cannot. PENSTOCK_TEST_HF_MODEL is its Hugging Face one."""
    echo = folders.mktemp("engines") / "echo.llmecho"
    echo.touch()
    hugging = os.environ.get("PENSTOCK_TEST_HF_MODEL")
    reasons = []
    for path in (echo, smollm2, *([Path(hugging)] if hugging else [])):
        found = files.look(path)
        reason = plug.fit(found)
        if not reason:
            return found
        reasons.append(f"{found.kind}: {reason}")
    return "; ".join(reasons)


async def test_greedy_answer_is_the_same_each_time_and_ends_with_its_reason(case: Case) -> None:
    first = await case.deltas()
    assert [token for delta in first for token in delta.token_ids] == await case.tokens()
    assert first[-1].finish_reason and not any(delta.finish_reason for delta in first[:-1])
    assert all(delta.cached_tokens >= -1 for delta in first) and first[0].cached_tokens < len(case.prompt)


async def test_answer_has_at_most_max_tokens_and_says_length(case: Case) -> None:
    whole = await case.tokens()
    for count in (1, 2, 5):
        deltas = await case.deltas(max_tokens=count)
        assert [token for delta in deltas for token in delta.token_ids] == whole[:count]
        assert deltas[-1].finish_reason == "length"


async def test_stop_token_is_the_last_one(case: Case) -> None:
    whole = await case.tokens()
    at = next(at for at, token in enumerate(whole) if at and token not in whole[:at])
    deltas = await case.deltas(stop_token_ids=(whole[at],))
    assert [token for delta in deltas for token in delta.token_ids] == whole[: at + 1]
    assert deltas[-1].finish_reason == "stop"


async def test_many_at_once_say_what_each_says_alone(case: Case) -> None:
    prompts = [case.prompt[:at] for at in range(len(case.prompt) - 7, len(case.prompt) + 1)]
    alone = [await case.tokens(token_ids=prompt) for prompt in prompts]
    together = await asyncio.gather(*(case.tokens(token_ids=prompt) for prompt in prompts))
    # Sums in another order may turn near ties, on some processors more of them; a mix-up of sequences would turn nearly
    # all, from the first token on.
    assert sum(one[0] == other[0] for one, other in zip(alone, together, strict=True)) >= len(prompts) - 1
    assert sum(one == other for one, other in zip(alone, together, strict=True)) >= len(prompts) // 2


async def test_more_than_fit_at_once_wait_their_turn(case: Case) -> None:
    count = 3 * case.engine.info.max_running
    answers = await asyncio.gather(*(case.tokens(max_tokens=3) for _ in range(min(count, 48))))
    assert all(len(answer) == 3 for answer in answers)
    await case.rests()


async def _cancels(case: Case, count: int, seed: int) -> None:
    """So many requests, each left after 0 to 30 tokens or at any moment before, the first token included."""
    chance = random.Random(seed)

    async def one() -> None:
        at = chance.randrange(31)
        ask = case.ask(max_tokens=40, token_ids=case.prompt * chance.choice((1, 1, 8)))
        if chance.random() < 0.5:  # leave after some tokens
            async with aclosing(case.engine.generate(ask)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    at -= len(delta.token_ids)
                    if at < 0:
                        return
        else:  # be cancelled anywhere, also while waiting
            async with asyncio.timeout(chance.random() * chance.choice((0.01, 0.1, 1))):
                async for _ in case.engine.generate(ask):
                    pass

    waiting = iter(range(count))

    async def several() -> None:
        for _ in waiting:
            with suppress(TimeoutError):
                await one()

    await asyncio.gather(*(several() for _ in range(case.engine.info.max_running + 4)))  # some wait
    await case.rests()


def _held() -> tuple[int, int]:
    """Tasks and open files of this process."""
    return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))


async def _holds(case: Case, before: tuple[int, int]) -> None:
    """Returns when no more tasks and files are held than before; fails after 20 s."""
    until = time.monotonic() + 20
    while (now := _held()) > before or now[1] > before[1]:
        assert time.monotonic() < until, (before, now)
        await asyncio.sleep(0.05)


async def test_cancels_leave_nothing_behind(case: Case) -> None:
    said = await case.tokens()
    before = _held()
    await _cancels(case, 50, seed=1)
    await _holds(case, before)
    assert await case.tokens() == said
    answers = await asyncio.gather(*(case.tokens(max_tokens=3) for _ in range(case.engine.info.max_running)))
    assert all(len(answer) == 3 for answer in answers)


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_thousand_cancels_leave_nothing_behind(case: Case) -> None:
    said = await case.tokens()
    before, used = _held(), case.engine.load().kv_used
    await _cancels(case, 1000, seed=2)
    await _holds(case, before)
    assert await case.tokens() == said
    info = case.engine.info
    if info.prefix_cache is False or info.engine == "llamacpp":  # which counts what running sequences hold
        assert case.engine.load().kv_used == used
    if case.real:  # the whole cache can be had: nothing of those who left is in the way
        room = (info.kv_capacity or info.context_tokens) // info.max_running
        long = (case.prompt * (room // len(case.prompt)))[: min(room, info.context_tokens) - 40]
        asks = [(*case.prompt[:3], 400 + at, *long) for at in range(info.max_running)]
        answers = await asyncio.gather(*(case.tokens(token_ids=ask, max_tokens=8) for ask in asks))
        assert all(answers)
    await case.rests()


async def test_bad_request_leaves_the_others_alone(case: Case) -> None:
    async def bad(ask: Generation) -> object:
        try:
            return [delta async for delta in case.engine.generate(ask)]
        except PenstockError as error:
            return error

    expected = await case.tokens()
    info = case.engine.info
    asks = [case.ask(token_ids=case.prompt * (info.context_tokens // len(case.prompt) + 2))]
    if info.grammars:
        asks.append(case.ask(grammar=Grammar("ebnf" if "ebnf" in info.grammars else "regex", "root ::= ((")))
    if case.real:
        asks.append(case.ask(token_ids=(info.vocabulary + 5,)))
    good, *answers = await asyncio.gather(case.tokens(), *(bad(ask) for ask in asks))
    assert good == expected
    if case.real:
        assert all(isinstance(answer, PenstockError) and answer.code != "INTERNAL" for answer in answers), answers
    assert await case.tokens() == expected


async def test_log_probabilities_are_those_of_the_tokens(case: Case) -> None:
    if case.engine.info.top_logprobs < 0:
        pytest.skip("it tells none")
    count = min(3, case.engine.info.top_logprobs)
    deltas = await case.deltas(logprobs=count)
    likely = [item for delta in deltas for item in delta.logprobs]
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert tokens == await case.tokens() and [item.token_id for item in likely] == tokens
    for item in likely:
        assert item.logprob <= 1e-4 and len(item.top) == count
        assert [value for _, value in item.top] == sorted((value for _, value in item.top), reverse=True)
        if count:
            assert item.top[0][1] == pytest.approx(item.logprob, abs=1e-3)  # greedy took the likeliest
    for delta in await case.deltas(logprobs=0):
        assert len(delta.logprobs) == len(delta.token_ids) and not any(item.top for item in delta.logprobs)


async def test_cutting_all_but_the_likeliest_is_greedy(case: Case) -> None:
    greedy = await case.tokens()
    cuts = [Sampling(temperature=1, top_k=1), Sampling(temperature=1, top_p=1e-6)]
    if case.engine.info.min_p:
        cuts.append(Sampling(temperature=1, min_p=1.0))
    for sampling in cuts:
        assert await case.tokens(sampling=sampling) == greedy, sampling


async def test_seed_decides_what_is_drawn(case: Case) -> None:
    needs(case, "seeded")
    await case.tokens()  # what the prefix cache does for the second must have been done for the first
    drawn = [await case.tokens(sampling=Sampling(temperature=1.5, seed=seed)) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1]
    assert not case.real or drawn[0] != drawn[2]


async def test_bias_makes_and_forbids_tokens(case: Case) -> None:
    needs(case, "logit_bias")
    if not case.real:
        pytest.skip("it says what it is told")
    first, *_ = await case.tokens()
    wanted = first + 1
    assert await case.tokens(max_tokens=4, sampling=Sampling(temperature=0, logit_bias={wanted: 100.0})) == [wanted] * 4
    assert (await case.tokens(sampling=Sampling(temperature=0, logit_bias={first: -100.0})))[0] != first


async def test_repeating_is_penalised(case: Case) -> None:
    if not case.real or not case.engine.info.penalties or not case.engine.info.logit_bias:
        pytest.skip("it has no penalties, or no bias to see them by")
    bias = {400: 100.0, 500: 99.0}  # two tokens that shut all others out
    free = await case.tokens(sampling=Sampling(temperature=0, logit_bias=bias, ignore_eos=True))
    held = await case.tokens(sampling=Sampling(temperature=0, logit_bias=bias, ignore_eos=True, frequency_penalty=2.0))
    assert len(set(held)) > len(set(free))


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 2.0), (0.5, 1.0)])
async def test_penalties_count_what_was_generated_and_not_the_prompt(
    case: Case, presence: float, frequency: float
) -> None:
    if not case.real or not case.engine.info.penalties or case.engine.info.top_logprobs < 20:
        pytest.skip("it has no penalties, or does not tell what is likely")
    prompt = (1, *((504, 3575, 282, 4649) * 6), 504)  # "The capital of France", which goes on and on
    sampling = Sampling(temperature=0, presence_penalty=presence, frequency_penalty=frequency)
    said = await case.tokens(token_ids=prompt, max_tokens=16, sampling=sampling)
    assert said
    seen = set(prompt) if case.engine.info.engine == "llamacpp" else set()  # for presence only: docs/engines.md
    for at, token in enumerate(said):
        (likely,) = [
            item for delta in await case.deltas(token_ids=(*prompt, *said[:at]), max_tokens=1, logprobs=20)
            for item in delta.logprobs
        ]  # fmt: skip
        counts = collections.Counter(said[:at])
        held = {
            other: value - counts[other] * frequency - (presence if counts[other] or other in seen else 0)
            for other, value in likely.top
        }
        best = max(held.values())
        assert held.get(token, likely.top[-1][1]) >= best - 0.05, (at, said)


@pytest.mark.parametrize(
    ("kind", "grammar", "pattern"),
    [
        ("ebnf", 'root ::= ("yes" | "no") " " [0-9] [0-9]', r"(yes|no) [0-9][0-9]"),
        ("ebnf", 'root ::= "é🙂" [a-c]{2,3} "."', r"é🙂[a-c]{2,3}\."),
        ("regex", r"(19|20)[0-9]{2}-[0-9]{2}", r"(19|20)[0-9]{2}-[0-9]{2}"),
    ],
)
async def test_grammar_is_obeyed_also_beside_free_requests(case: Case, kind: Any, grammar: str, pattern: str) -> None:
    if kind not in case.engine.info.grammars:
        pytest.skip(f"it takes no {kind}")
    alone = await case.tokens()
    ask = {"grammar": Grammar(kind, grammar), "max_tokens": 60, "sampling": Sampling(temperature=1, seed=3)}
    held, free = await asyncio.gather(case.deltas(**ask), case.tokens())
    tokens = [token for delta in held for token in delta.token_ids]
    assert held[-1].finish_reason == "stop" and free == alone
    assert re.fullmatch(pattern, re.sub(r"<\|[a-z_]+\|>$", "", case.text(tokens)))  # its end may be among them


async def test_prefix_is_found_again_and_counted(case: Case) -> None:
    needs(case, "prefix_cache")
    prompt = (*case.prompt[:4], *(300 + at for at in range(200)), *case.prompt)
    await case.tokens(token_ids=prompt)
    hits = case.engine.load().prefix_hits
    again = await case.deltas(token_ids=prompt)
    if again[0].cached_tokens == -1:
        pytest.skip(f"{case.engine.info.engine} cannot tell how much it found")
    assert again[0].cached_tokens > len(prompt) // 2
    assert case.engine.load().prefix_hits - hits == again[0].cached_tokens


async def test_end_is_ignored_or_put_off(case: Case) -> None:
    ending = case.prompt[:9] if case.real else tuple(b"say:ok")  # after these the model ends soon
    free = await case.tokens(token_ids=ending, max_tokens=30)
    assert len(free) < 30, "the prompt no longer makes the model end"
    if case.engine.info.ignore_eos:
        deltas = await case.deltas(token_ids=ending, max_tokens=30, sampling=Sampling(temperature=0, ignore_eos=True))
        assert sum(len(delta.token_ids) for delta in deltas) == 30 and deltas[-1].finish_reason == "length"
    if case.engine.info.min_tokens:
        least = len(free) + 3
        put_off = await case.tokens(
            token_ids=ending, max_tokens=30, sampling=Sampling(temperature=0, min_tokens=least)
        )  # fmt: skip
        assert len(put_off) >= least and put_off[: len(free) - 1] == free[:-1]


async def test_deadline_ends_it_if_nothing_else_did(case: Case) -> None:
    began = time.monotonic()
    try:
        await case.deltas(max_tokens=1500, deadline=began + 0.3, sampling=Sampling(temperature=0, ignore_eos=True))
    except DeadlineExceeded:
        assert time.monotonic() - began < 10
    await case.rests()


async def test_information_is_true_of_what_was_loaded(case: Case) -> None:
    info = case.engine.info
    assert info.engine in plugins.names(ENGINES) and info.engine_version
    assert info.context_tokens <= 2048 and info.max_running <= 8 and info.vocabulary > 0
    if case.real:
        assert info.vocabulary == 49152 and info.weights_bytes > 50e6 and info.precision
        assert info.kv_bytes_per_token > 0 and info.kv_capacity >= info.context_tokens
