"""The engine `remote` against a scripted upstream on loopback: what it asks, what it makes of answers and of faults."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from penstock.core.errors import InvalidInput, LoadError, Overloaded, PenstockError, ServableError
from penstock.core.language import (
    Ask,
    Event,
    Finished,
    Format,
    Generation,
    Message,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolCallPart,
    Usage,
)
from penstock.core.language_json import decode_event, encode_ask
from penstock.language import files
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.remote import RemoteEngine, plug

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HELLO = Ask(messages=[Message("user", "hello")])


def chunk(delta: dict[str, object], reason: str | None = None, **more: object) -> dict[str, object]:
    return {"model": "there", "choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


WORDS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    },
]


def says(*chunks: object, done: bool = True) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for item in chunks:
            await response.write(b"data: " + (item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n\n")
        if done:
            await response.write(b"data: [DONE]\n\n")
        return response

    return handle


def refuses(status: int, message: str = "no", **headers: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": message, "param": "stop"}}, status=status, headers=names)

    return handle


class Upstream:
    """A server that answers its nth request with its nth handler, and its last one from then on."""

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = handlers
        self.asked: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.left = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        try:
            return await self.handlers[min(len(self.asked), len(self.handlers)) - 1](request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise


@asynccontextmanager
async def serving(*handlers: Handler) -> AsyncIterator[Upstream]:
    upstream = Upstream(*handlers)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()


@asynccontextmanager
async def engine(tmp_path: Path, *upstreams: str, top: str = "") -> AsyncIterator[RemoteEngine]:
    path = tmp_path / "far.upstream.toml"
    path.write_text(top + "\n" + "\n".join(f"[[upstream]]\nmodel = 'there'\n{upstream}" for upstream in upstreams))
    path.chmod(0o600)
    loaded = plug.load(files.look(path), EngineContext("far"))
    assert isinstance(loaded, RemoteEngine)
    try:
        yield loaded
    finally:
        await loaded.close()


def at(upstream: Upstream, more: str = "") -> str:
    return f"url = '{upstream.url}'\n{more}\n"


async def ask(loaded: RemoteEngine, ask: Ask = HELLO, **more: float) -> list[Event]:
    events, reasons = [], []
    async for delta in loaded.generate(Generation("a", (), 10, ask=encode_ask(ask), **more)):  # type: ignore[arg-type]
        reasons.append(delta.finish_reason)
        if delta.event:
            events.append(decode_event(delta.event))
    assert reasons[-1] and not any(reasons[:-1])
    return events


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_answer_is_passed_on_with_its_usage_and_its_end(tmp_path: Path) -> None:
    async with serving(says(*WORDS)) as upstream, engine(tmp_path, at(upstream, "key = 'secret'")) as loaded:
        events = await ask(loaded)
    assert text(events) == "Hello"
    assert events[-2] == Finished(0, "stop") and events[-1] == Usage(7, 2, 4)
    assert upstream.paths == ["/v1/chat/completions"]
    assert upstream.headers[0]["Authorization"] == "Bearer secret"
    assert upstream.asked[0]["model"] == "there" and upstream.asked[0]["messages"] == [
        {"role": "user", "content": "hello"}
    ]


async def test_every_field_of_an_ask_has_its_place_in_the_body(tmp_path: Path) -> None:
    tool = Tool("f", "does f", {"type": "object"}, strict=True)
    full = Ask(
        messages=[
            Message("assistant", None, tool_calls=(ToolCall("c1", "f", "{}"),)),
            Message("tool", "4", tool_call_id="c1"),
        ],
        max_tokens=5, sampling=Sampling(temperature=0, top_p=0.5, seed=3, logit_bias={9: -100.0}, presence_penalty=1.0),
        stop=("x",), tools=(tool,), tool_choice="=f", parallel_tool_calls=False, logprobs=2, reasoning="low",
        format=Format("json_schema", {"type": "object"}, name="n"),
    )  # fmt: skip
    async with serving(says(*WORDS)) as upstream, engine(tmp_path, at(upstream)) as loaded:
        await ask(loaded, full)
        await ask(loaded, Ask(prompt=(1, 2), max_tokens=3, logprobs=0, echo=True))
    chat, completion = upstream.asked
    expected = {
        "max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": 3, "logit_bias": {"9": -100.0}, "presence_penalty": 1.0,
        "stop": ["x"], "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False,
        "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low", "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert {name: chat[name] for name in expected} == expected
    assert chat["messages"] == [
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert chat["response_format"]["json_schema"]["schema"] == {"type": "object"}  # type: ignore[index]
    assert upstream.paths[1] == "/v1/completions" and completion["prompt"] == [1, 2]
    assert (completion["echo"], completion["logprobs"], completion["max_tokens"]) == (True, 0, 3)


async def test_tool_calls_reasoning_and_log_probabilities_are_read(tmp_path: Path) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}
    token = {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -1.0}]}
    chunks = [
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "é"}, logprobs={"content": [token]}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
        chunk({}, "tool_calls"),
    ]
    async with serving(says(*chunks)) as upstream, engine(tmp_path, at(upstream)) as loaded:
        events = await ask(loaded)
    calls = [event for event in events if isinstance(event, ToolCallPart)]
    assert calls == [ToolCallPart(0, 0, "c", "f", "{"), ToolCallPart(0, 0, "", "", "}")]
    (words,) = (event for event in events if isinstance(event, Text))
    assert words.tokens[0].raw == "é".encode() and words.tokens[0].top == ((-1, "e", b"e", -1.0),)
    assert Finished(0, "tool_calls") in events
    assert isinstance(events[-1], Usage) and events[-1].completion_tokens == 4  # counted: it told no usage


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503, 302])
async def test_next_upstream_answers_for_one_that_cannot(tmp_path: Path, status: int) -> None:
    async with (
        serving(refuses(status, Location="/v1/elsewhere")) as bad,
        serving(says(*WORDS)) as good,
        engine(tmp_path, at(bad), "url = 'http://127.0.0.1:9'", at(good)) as loaded,
    ):
        assert text(await ask(loaded)) == "Hello"
    assert len(bad.asked) == 1 and len(good.asked) == 1


async def test_fault_of_the_caller_is_told_and_not_tried_elsewhere(tmp_path: Path) -> None:
    async with (
        serving(refuses(400, "bad stop")) as bad,
        serving(says(*WORDS)) as good,
        engine(tmp_path, at(bad), at(good)) as loaded,
    ):
        with pytest.raises(InvalidInput, match="bad stop") as caught:
            await ask(loaded)
    assert caught.value.parameter == "stop" and not good.asked


async def test_what_an_upstream_asks_to_wait_is_waited_once(tmp_path: Path) -> None:
    async with (
        serving(refuses(429, Retry_After_Ms="150"), says(*WORDS)) as upstream,
        engine(tmp_path, at(upstream)) as loaded,
    ):
        began = time.monotonic()
        assert text(await ask(loaded)) == "Hello"
        assert time.monotonic() - began >= 0.15
    async with serving(refuses(429, Retry_After="40")) as upstream, engine(tmp_path, at(upstream)) as loaded:
        for _ in range(3):
            with pytest.raises(Overloaded) as caught:
                await ask(loaded)
            assert 38 < (caught.value.retry_after_s or 0) <= 40
    assert len(upstream.asked) == 1  # it is left alone until then


async def test_upstream_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    async with (
        serving(refuses(500)) as bad,
        serving(says(*WORDS)) as good,
        engine(tmp_path, at(bad), at(good)) as loaded,
    ):
        for _ in range(20):
            assert text(await ask(loaded)) == "Hello"
    assert len(bad.asked) == 5 and len(good.asked) == 20


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (says(*WORDS[:3], done=False), "left off"),
        (says(*WORDS[:3]), "left off"),
        (says(*WORDS[:2], {"error": {"message": "out of memory"}}), "out of memory"),
        (says(*WORDS[:2], b"{nonsense"), "no chunk"),
        (says(*WORDS[:2], b"x" * (5 << 20)), "too much|no chunk"),
    ],
)
async def test_answer_that_breaks_off_is_an_error_and_never_a_clean_end(
    tmp_path: Path, handler: Handler, told: str
) -> None:
    async with (
        serving(handler) as bad,
        serving(says(*WORDS)) as good,
        engine(tmp_path, at(bad), at(good)) as loaded,
    ):
        with pytest.raises(ServableError, match=told):
            await ask(loaded)
    assert not good.asked  # words have been told: no other can go on


async def test_closing_the_answer_closes_the_connection_to_the_upstream(tmp_path: Path) -> None:
    async def forever(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"data: " + json.dumps(WORDS[1]).encode() + b"\n\n")
            await asyncio.sleep(0.01)

    async with serving(forever) as upstream, engine(tmp_path, at(upstream)) as loaded:
        async with aclosing(loaded.generate(Generation("a", (), 10, ask=encode_ask(HELLO)))) as deltas:  # type: ignore[type-var]
            async for _ in deltas:
                break
        await asyncio.wait_for(upstream.left.wait(), 5)
        assert loaded.load().running == 0


async def test_silence_and_deadlines_end_the_wait(tmp_path: Path) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async with serving(silent) as upstream, engine(tmp_path, at(upstream, "timeout_s = 0.2")) as loaded:
        with pytest.raises(ServableError, match="did not answer"):
            await ask(loaded)
    async with serving(silent) as upstream, engine(tmp_path, at(upstream)) as loaded:
        with pytest.raises(PenstockError) as caught:
            await ask(loaded, deadline=time.monotonic() + 0.2)
        assert caught.value.code == "DEADLINE_EXCEEDED"


async def test_what_the_api_has_no_word_for_is_refused_by_name(tmp_path: Path) -> None:
    asked = Ask(messages=HELLO.messages, sampling=Sampling(top_k=4), names={"sampling.top_k": "topK"})
    async with serving(says(*WORDS)) as upstream:
        async with engine(tmp_path, at(upstream)) as loaded:
            with pytest.raises(InvalidInput, match=r"topK.*extensions"):
                await ask(loaded, asked)
        async with engine(tmp_path, at(upstream), top="extensions = true") as loaded:
            await ask(loaded, asked)
    assert [body.get("top_k") for body in upstream.asked] == [4]


async def test_embeddings_come_back_in_order_and_of_length_one(tmp_path: Path) -> None:
    async def vectors(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["input"] == ["ä", "b"]
        return web.json_response({"data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}]})

    async with serving(vectors) as upstream, engine(tmp_path, at(upstream), top="embeds = true") as loaded:
        assert await loaded.embed([list("ä".encode()), list(b"b")]) == [[0.6, 0.8], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("written", "mode", "told"),
    [
        ("url = 'http://h/v1'\nkey = 'k'", 0o644, "chmod 600"),
        ("url = 'ftp://h/v1'", 0o600, "https://HOST"),
        ("url = 'https://me:pw@h/v1'", 0o600, "https://HOST"),
        ("url = 'http://h/v1'\nkeys = 'k'", 0o600, "did you mean 'key'"),
        ("url = 'http://h/v1'\nkey_env = 'PENSTOCK_NO_SUCH'", 0o600, "not set"),
        ("url = 'http://h/v1'\nheaders = {Authorization = 'x'}", 0o600, "key_env"),
        ("url = 'http://h/v1'\ntimeout_s = 'x'", 0o600, "a number"),
    ],
)
def test_faulty_file_is_refused_with_what_to_write(tmp_path: Path, written: str, mode: int, told: str) -> None:
    path = tmp_path / "far.upstream.toml"
    path.write_text(f"[[upstream]]\nmodel = 'm'\n{written}")
    path.chmod(mode)
    with pytest.raises(LoadError, match=told):
        plug.load(files.look(path), EngineContext("far"))


async def test_keys_come_from_the_environment_or_a_file_and_are_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_TEST_KEY", "from-environment")
    (tmp_path / "key").write_text("from-file\n")
    async with serving(refuses(500)) as one, serving(refuses(500)) as two:
        keys = ("key_env = 'PENSTOCK_TEST_KEY'", f"key_file = '{os.fspath(tmp_path / 'key')}'")
        async with engine(tmp_path, at(one, keys[0]), at(two, keys[1])) as loaded:
            with pytest.raises(ServableError) as caught:
                await ask(loaded)
            told = str(caught.value) + repr(loaded.info) + repr(loaded._described)
    assert one.headers[0]["Authorization"] == "Bearer from-environment"
    assert two.headers[0]["Authorization"] == "Bearer from-file"
    assert "from-" not in told
