"""Quotas of callers and the gate before an engine, on a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from language_door import answer, engine_of, text_of

from penstock.core.errors import Overloaded, QuotaExceeded
from penstock.core.language import Ask, Usage
from penstock.runtime.keys import KeyLimits


def said(text: str, caller: str = "", **more: object) -> Ask:
    return Ask(prompt=f"say:{text}", max_tokens=100, caller=caller, **more)  # type: ignore[arg-type]


async def test_what_a_caller_used_is_taken_from_its_quota(llmecho: Path) -> None:
    async with engine_of(llmecho, limits={"alice": KeyLimits(tokens_per_day=150)}) as engine:
        events = await answer(engine, said("hello", "alice"))
        assert isinstance(events[-1], Usage)
        used = events[-1].prompt_tokens + events[-1].completion_tokens
        with pytest.raises(QuotaExceeded, match=f"has used {used};") as caught:
            await answer(engine, said("x" * 100, "alice"))
        assert caught.value.retry_after_s is not None
        assert text_of(await answer(engine, said("hello", "bob"))) == "hello"  # has no limits


async def test_the_choices_of_one_ask_are_one_request(llmecho: Path) -> None:
    async with engine_of(llmecho, limits={"alice": KeyLimits(requests_per_minute=1)}) as engine:
        events = await answer(engine, said("hello", "alice", n=3))
        assert [text_of(events, choice) for choice in range(3)] == ["hello"] * 3
        with pytest.raises(QuotaExceeded, match="1 requests a minute"):
            await answer(engine, said("hello", "alice"))


async def test_embeddings_count_too(llmecho: Path) -> None:
    async with engine_of(llmecho, limits={"alice": KeyLimits(tokens_per_minute=20)}) as engine:
        model = await engine.language("m")
        await model.embed(["0123456789"], caller="alice")
        with pytest.raises(QuotaExceeded, match="20 tokens a minute"):
            await model.embed(["0123456789" * 2], caller="alice")


async def test_a_flood_of_one_caller_waits_while_others_are_answered(llmecho: Path) -> None:
    options = {"max_running": 1, "delay_s": 0.002, "max_queued_tokens": 4000}
    async with engine_of(llmecho, options=options) as engine:
        flood = [asyncio.create_task(answer(engine, said("x" * 50, "flood"))) for _ in range(60)]
        done: list[str] = []
        for task in flood:
            task.add_done_callback(lambda _: done.append("flood"))
        await asyncio.sleep(0)
        mouse = asyncio.create_task(answer(engine, said("x" * 50, "mouse")))
        mouse.add_done_callback(lambda _: done.append("mouse"))
        assert text_of(await mouse) == "x" * 50
        answered = [task for task in flood if task.done() and task.exception() is None]
        assert len(answered) <= 5  # not behind all of the flood
        results = await asyncio.gather(*flood, return_exceptions=True)
        refused = [one for one in results if isinstance(one, Overloaded)]
        assert refused  # more than may wait
        assert "max_queued_tokens is 4000" in str(refused[0])
        assert all(text_of(one) == "x" * 50 for one in results if not isinstance(one, BaseException))
        assert len(refused) + sum(isinstance(one, list) for one in results) == 60


async def test_urgent_ones_go_first(llmecho: Path) -> None:
    async with engine_of(llmecho, options={"max_running": 1, "delay_s": 0.002}) as engine:
        order: list[str] = []

        async def one(name: str, priority: int) -> None:
            await answer(engine, said("x" * 20, priority=priority))
            order.append(name)

        tasks = [asyncio.create_task(one(f"usual-{number}", 0)) for number in range(5)]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(one("urgent", 1)))
        await asyncio.gather(*tasks)
        assert order.index("urgent") <= 1
