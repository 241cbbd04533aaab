"""Language models through the whole path, from an Ask to Events, with a real worker and the echo engine."""

from __future__ import annotations

from pathlib import Path

from language_door import answer, engine_of, front_of, text_of

from penstock.core.language import Ask, Began, Finished, Message, Text, Usage


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
