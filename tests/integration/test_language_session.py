"""Language models through the whole path, from an Ask to Events, with a real worker and the echo engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from language_door import answer, engine_of, front_of, text_of

from penstock.core.language import Ask, Began, Finished, Message, Text, Usage

Found = TypeVar("Found")


async def until(look: Callable[[], Awaitable[Found]], right: Callable[[Found], bool]) -> Found:
    """What `look` finds once it is right; the last it found when it does not come to be in time."""
    for _ in range(500):
        found = await look()
        if right(found):
            return found
        await asyncio.sleep(0.01)
    return await look()


def said(text: str) -> Ask:
    return Ask(messages=[Message("user", text)])


async def test_chat_is_answered_in_order(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        events = await answer(engine, said("say:grüße"))
        assert isinstance(events[0], Began)
        assert isinstance(events[-1], Usage)
        assert text_of(events) == "grüße"
        assert [event for event in events if isinstance(event, Finished)] == [Finished(0, "stop")]
        assert events[0].prompt_tokens == events[-1].prompt_tokens > 0
        assert events[-1].completion_tokens == len("grüße".encode()) + 1
        async with front_of(engine) as front:
            again = await answer(front, said("say:grüße"))
            assert text_of(again) == "grüße"
            assert [type(event) for event in again] == [type(event) for event in events]
            assert isinstance(again[-2], Finished)
            assert all(isinstance(event, Text) for event in again[1:-2])


async def test_metrics_count_requests_of_every_front(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine, front_of(engine) as front:
        for door in (engine, front):
            await answer(door, dataclasses.replace(said("say:abc"), caller="team"))
        model = await engine.language("m")
        stream = model.ask(said(f"say:{'x' * 1000}"))
        async for event in stream:
            if isinstance(event, Text):
                break
        await stream.aclose()
        text = (await until(engine.metrics, lambda text: b'generation"} 8' in text)).decode()
        assert 'penstock_llm_finished_total{model="m",reason="stop",version="1"} 2.0' in text
        assert 'penstock_llm_caller_requests_total{caller="team",model="m",version="1"} 2.0' in text
        assert 'penstock_llm_caller_tokens_total{caller="team",kind="generation",model="m",version="1"} 8.0' in text
        assert 'vllm:time_to_first_token_seconds_count{engine="1",model_name="m"} 3.0' in text
        assert 'vllm:e2e_request_latency_seconds_count{engine="1",model_name="m"} 2.0' in text
        assert 'vllm:num_requests_waiting{engine="1",model_name="m"} 0.0' in text
