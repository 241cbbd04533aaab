"""Language models through the whole path, from an Ask to Events, with a real worker and the echo engine."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from language_door import answer, engine_of, front_of, text_of

from penstock.core.errors import InvalidInput, PenstockError, ServableError, TooLarge, Unsupported, WorkerLost
from penstock.core.language import Ask, Began, Finished, Message, Sampling, Text, Tool, ToolCallPart, Usage
from penstock.core.messages import Request
from penstock.runtime.engine import Engine

Found = TypeVar("Found")

FIRST_TOKENS = b'vllm:time_to_first_token_seconds_count{engine="1",model_name="m"} 3.0'


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
        text = (await until(engine.metrics, lambda text: FIRST_TOKENS in text)).decode()
        assert 'penstock_llm_finished_total{model="m",reason="stop",version="1"} 2.0' in text
        assert 'penstock_llm_caller_requests_total{caller="team",model="m",version="1"} 2.0' in text
        assert 'penstock_llm_caller_tokens_total{caller="team",kind="generation",model="m",version="1"} 8.0' in text
        assert FIRST_TOKENS.decode() in text
        assert 'vllm:e2e_request_latency_seconds_count{engine="1",model_name="m"} 2.0' in text
        assert 'vllm:num_requests_waiting{engine="1",model_name="m"} 0.0' in text


async def test_choices_share_one_prompt(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        ask = said("say:twice")
        ask.n = 3
        events = await answer(engine, ask)
        assert [text_of(events, choice) for choice in range(3)] == ["twice"] * 3
        assert sorted(event.choice for event in events if isinstance(event, Finished)) == [0, 1, 2]
        assert isinstance(events[-1], Usage)
        assert sum(isinstance(event, Usage) for event in events) == 1
        assert events[-1].completion_tokens == 3 * len("twice!")


async def test_stop_strings_end_the_answer_and_the_stream(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        ask = said("say:one, two, three")
        ask.stop = (" two",)
        events = await answer(engine, ask)
        assert text_of(events) == "one,"
        assert Finished(0, "stop", " two") in events
        ask.include_stop = True
        assert text_of(await answer(engine, ask)) == "one, two"
        await idle(engine)


async def test_length_is_told_from_an_end(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        ask = said("say:grüße")
        ask.max_tokens = 3  # ends inside a character
        events = await answer(engine, ask)
        assert text_of(events) == "gr\ufffd"
        assert Finished(0, "length") in events


@pytest.mark.parametrize("stop", [(), ("cd",)])
async def test_log_probabilities_are_those_of_the_text(llmecho: Path, stop: tuple[str, ...]) -> None:
    async with engine_of(llmecho) as engine:
        ask = said("say:abcdef")
        ask.logprobs, ask.stop = 2, stop
        events = await answer(engine, ask)
        texts = [event for event in events if isinstance(event, Text)]
        tokens = [token for text in texts for token in text.tokens]
        assert "".join(token.text for token in tokens) == text_of(events) == ("ab" if stop else "abcdef")
        assert all(len(token.top) == 2 and token.logprob < 0 for token in tokens)
        assert [token.raw for token in tokens] == [letter.encode() for letter in text_of(events)]


async def test_prompts_are_repeated_when_asked(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        events = await answer(engine, Ask(prompt="say:so", echo=True))
        assert [event.text for event in events if isinstance(event, Text) and event.prompt] == ["say:so"]
        assert text_of(events) == "say:soso"


async def test_tool_calls_are_read_and_named(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        ask = said('say:<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
        ask.tools = (Tool("add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}}),)
        events = await answer(engine, ask)
        parts = [event for event in events if isinstance(event, ToolCallPart)]
        assert parts[0].id.startswith("call_")
        assert parts[0].name == "add"
        assert "".join(part.arguments for part in parts).replace(" ", "") == '{"a":1}'
        assert Finished(0, "tool_calls") in events
        assert not text_of(events).strip()


async def test_prompt_beyond_the_context_is_too_large(llmecho: Path) -> None:
    async with engine_of(llmecho, options={"context_tokens": 64}) as engine:
        with pytest.raises(TooLarge, match=r"100 tokens.*64"):
            await answer(engine, Ask(prompt=[65] * 100))
        with pytest.raises(TooLarge, match=r"limit is 60 .*at most 54"):
            await answer(engine, Ask(prompt=[65] * 10, max_tokens=60, names={"max_tokens": "limit"}))
        events = await answer(engine, Ask(prompt=[65] * 10, sampling=Sampling(ignore_eos=True)))
        assert events[-1].completion_tokens == 54  # type: ignore[union-attr]  # Usage
        assert Finished(0, "length") in events


async def test_engine_is_reached_by_the_server_only(llmecho: Path) -> None:
    import numpy as np

    async with engine_of(llmecho) as engine, front_of(engine) as front:
        for door in (engine, front):
            shown = door.describe("m").signature
            assert [spec.name for spec in (*shown.inputs, *shown.outputs)] == ["text_input", "text_output"]
            forged = Request("m", {"token_ids": np.array([1], np.int32)}, parameters={"generation": '{"id":"x"}'})
            with pytest.raises(Unsupported, match="/v1/chat/completions"):
                await door.submit(forged)
            with pytest.raises(Unsupported, match="/v1/chat/completions"):
                async for _ in door.stream(forged):
                    pass


async def test_worker_that_dies_is_an_error_and_is_replaced(llmecho: Path) -> None:
    async with engine_of(llmecho, options={"delay_s": 0.001}) as engine:
        model = await engine.language("m")
        got = ""
        with pytest.raises(WorkerLost):  # never a clean end
            async for event in model.ask(said("die:some text")):
                assert not isinstance(event, Finished | Usage)
                got += event.text if isinstance(event, Text) else ""
        assert got
        assert "some text".startswith(got)
        assert text_of(await answer(engine, said("say:back"))) == "back"


async def test_cancelled_streams_leave_no_slot(llmecho: Path, request: pytest.FixtureRequest) -> None:
    """1,000 in the long form: closed before, at, and after the first token, of one choice or several."""
    count = 1000 if request.config.getoption("--chaos", default=False) else 100
    random_ = random.Random(3)
    async with engine_of(llmecho, options={"max_running": 8, "delay_s": 0.0005}) as engine, front_of(engine) as front:

        async def one(number: int) -> None:
            model = await (engine if number % 2 else front).language("m")
            ask = said(f"say:{'long ' * 200}")
            ask.n = random_.choice((1, 1, 1, 3))
            stream = model.ask(ask)
            take = random_.choice((0, 1, 2, 5, 20))
            reader = asyncio.create_task(read(stream, take))
            if random_.random() < 0.3:
                await asyncio.sleep(random_.random() * 0.01)
                reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await stream.aclose()

        pending = set()
        for number in range(count):
            pending.add(asyncio.create_task(one(number)))
            if len(pending) >= 20:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            await asyncio.wait(pending)
        await idle(engine)
        model = await engine.language("m")
        last = [event async for event in model.ask(said("say:after"))]
        assert text_of(last) == "after"
        text = (await engine.metrics()).decode()
        assert 'vllm:num_requests_running{engine="1",model_name="m"} 0.0' in text
        # What the engine itself says with its last token: nobody but the one that was asked last.
        assert engine.loaded("m", "1").metrics.language.load.running == 1  # type: ignore[union-attr]


async def read(stream, take: int) -> None:  # type: ignore[no-untyped-def]
    """Reads so many events, and leaves."""
    if not take:
        return
    async for _ in stream:
        take -= 1
        if not take:
            break
    await stream.aclose()


async def idle(engine: Engine) -> None:
    """Returns when no request is held; fails when that does not come to be."""

    async def held() -> int:
        return (await engine.statistics("m"))[0].in_flight

    assert await until(held, lambda count: count == 0) == 0


async def test_texts_are_forgotten_with_their_version(llmecho: Path) -> None:
    async with engine_of(llmecho) as engine:
        model = await engine.language("m")
        assert await model.tokenize("ab") == [257, 97, 98]
        assert await model.detokenize([97, 98]) == "ab"
        assert await model.pieces([97, 98]) == ["a", "b"]
        assert await model.render(said("hello")) == "user:\nhello\n"
        assert engine._sessions._texts  # what is kept is not to be seen otherwise
        vectors = await model.embed(["ab", [97, 98]])
        assert [len(vector) for vector in vectors.values] == [8, 8]
        assert (await model.score([("ab", "ab")])).values[0][0] == pytest.approx(1.0)
        with pytest.raises(Unsupported):
            await model.classify(["ab"])
    with pytest.raises(PenstockError):
        await engine.language("m")
    engine._sessions.prune()
    assert not engine._sessions._texts


async def test_slow_reader_gets_tokens_joined(llmecho: Path) -> None:
    text = "".join(chr(97 + number % 26) for number in range(1000))
    async with engine_of(llmecho) as engine:
        model = await engine.language("m")
        events = []
        async for event in model.ask(said(f"say:{text}")):
            events.append(event)
            if isinstance(event, Text):
                await asyncio.sleep(0.002)
        assert text_of(events) == text
        # The end is a token too, and may come with the last text.
        assert sum(event.count for event in events if isinstance(event, Text)) in (1000, 1001)
        assert len(events) < 500
        assert events[-1].completion_tokens == 1001  # type: ignore[union-attr]  # Usage


async def test_output_that_breaks_its_promise_is_an_error(llmecho: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    async with engine_of(llmecho) as engine:
        model = await engine.language("m")
        ask = said('say:<tool_call>{"name": "add", "arguments": {"a": "one"}}</tool_call>')
        ask.tools = (Tool("add", parameters=schema, strict=True),)
        with pytest.raises(ServableError, match="one"):
            async for event in model.ask(ask):
                assert not isinstance(event, Finished | Usage)
        ask.tools = (Tool("add", parameters=schema),)  # nothing was promised
        assert Finished(0, "tool_calls") in await answer(engine, ask)
        ask.tool_choice, ask.names = "required", {"tool_choice": "choice"}
        with pytest.raises(InvalidInput, match=r"choice = required.*cannot hold"):
            await answer(engine, ask)
        await idle(engine)


async def test_what_a_template_refuses_is_said_in_its_own_words_of_the_messages(llmecho: Path) -> None:
    template = "{% if messages|length < 2 %}{{ raise_exception('two at least') }}{% endif %}x"
    async with engine_of(llmecho, options={"chat_template": template}) as engine:
        with pytest.raises(InvalidInput, match="two at least") as refused:
            await answer(engine, Ask(messages=[Message("user", "a")], names={"messages": "input"}))
        assert refused.value.parameter == "input"
