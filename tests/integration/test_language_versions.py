"""Versions of a language model come and go while it streams: each answer is whole, and of one version."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from language_streams import becomes
from running_server import RunningServer, ServerFactory

pytestmark = pytest.mark.timeout(120)
BOTH = pytest.mark.parametrize("fronts", [pytest.param(1, marks=pytest.mark.chaos), 2])

SLOW = {"delay_s": 0.01, "max_running": 4}
TOKENS = 60


def put(folder: Path, number: int, says: str = "") -> Path:
    """Version `number` of a model, whose answers begin with its number; the folder appears at once."""
    made = folder / f".v{number}"
    made.mkdir(parents=True)
    (made / "echo.llmecho").write_text(says or str(number))
    return made.rename(folder / str(number))


class Streams:
    """Streams of a model, each of TOKENS tokens: `1x1x1x…` of version 1."""

    def __init__(self, running: RunningServer, model: str = "echo") -> None:
        self.client = httpx.AsyncClient(
            base_url=running.http, timeout=60, limits=httpx.Limits(max_connections=200, max_keepalive_connections=0)
        )
        self.model = model
        self.texts: list[str] = []
        self.failures: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.begun = 0

    def begin(self, count: int, tokens: int = TOKENS, **headers: str) -> None:
        for _ in range(count):
            task = asyncio.create_task(self._read(tokens, headers))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _read(self, tokens: int, headers: dict[str, str]) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": "say:x"}], "stream": True}
        body |= {"max_tokens": tokens, "ignore_eos": True}
        text, last = "", ""
        try:
            async with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                async for line in answer.aiter_lines():
                    last = line or last
                    if line.startswith("data: {") and '"choices"' in line:
                        for choice in json.loads(line[6:])["choices"]:
                            self.begun += not text and bool(choice["delta"].get("content"))
                            text += choice["delta"].get("content") or ""
        except httpx.TransportError as error:
            last = repr(error)
        if last == "data: [DONE]":
            self.texts.append(text)
        else:
            self.failures.append(last)

    async def says(self) -> str:
        """What begins an answer now; "" when there is none."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "say:x"}]}
        answer = await self.client.post("/v1/chat/completions", json=body)
        if answer.status_code in (404, 503):
            return ""
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"]).removesuffix("x")

    async def become(self, number: str) -> None:
        async with asyncio.timeout(30):
            while await self.says() != number:
                pass

    async def end(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.tasks), 60)

    def check(self, *numbers: str) -> None:
        """Every answer is whole and of one version, and each of `numbers` gave some."""
        assert not self.failures, self.failures[:3]
        assert set(self.texts) == {(number + "x") * (TOKENS // 2) for number in numbers}

    async def at_work(self) -> float:
        text = (await self.client.get("/metrics")).text
        return sum(float(one) for one in re.findall(r"^penstock_llm_(?:running|waiting)\{.*\} (\S+)$", text, re.M))


@pytest.fixture
async def streams_of() -> AsyncIterator[Callable[..., Streams]]:
    made: list[Streams] = []

    def of(running: RunningServer, model: str = "echo") -> Streams:
        made.append(Streams(running, model))
        return made[-1]

    yield of
    for one in made:
        for task in set(one.tasks):
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
        await one.client.aclose()


@BOTH
async def test_a_switch_of_versions_under_streams_loses_none_and_mixes_none(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams], fronts: int
) -> None:
    """Also those that wait for room when the switch comes, and those that are being read then."""
    folder = tmp_path / "echo"
    put(folder, 1)
    table = {"path": str(folder), "options": SLOW, "keep_previous_s": 0}
    running = server({"echo": table}, poll_s=0.05, fronts=fronts)
    streams = streams_of(running)
    streams.begin(12)
    await becomes(lambda: streams.begun >= 4, 20, "they stream")
    for number in (2, 3):
        put(folder, number)
        async with asyncio.timeout(30):
            while await streams.says() != str(number):
                if len(streams.tasks) < 8:
                    streams.begin(1)
    streams.begin(2)
    await streams.end()
    assert {text[0] for text in streams.texts} >= {"1", "3"}
    streams.check(*{text[0] for text in streams.texts})
    assert await streams.at_work() == 0


@BOTH
async def test_a_version_loaded_anew_under_streams_gives_no_answer_with_the_tokens_of_the_other(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams], fronts: int
) -> None:
    folder = tmp_path / "echo"
    path = put(folder, 1, "a") / "echo.llmecho"
    running = server(
        {"echo": {"path": str(folder), "options": SLOW}}, model_control="explicit", load_models=["echo"], fronts=fronts
    )
    streams = streams_of(running)
    streams.begin(10)
    await becomes(lambda: streams.begun >= 4, 20, "they stream")
    for says in "bc":
        path.write_text(says)
        load = asyncio.create_task(streams.client.post("/v2/repository/models/echo/load"))
        while not load.done():
            if len(streams.tasks) < 8:
                streams.begin(1)
            await asyncio.sleep(0.01)
        assert load.result().status_code == 200, load.result().text
        await streams.become(says)
    streams.begin(2)
    await streams.end()
    assert {text[0] for text in streams.texts} >= {"a", "c"}
    streams.check(*{text[0] for text in streams.texts})


async def test_another_template_of_a_load_call_is_the_one_that_answers(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams]
) -> None:
    """The files are the same; what was read of them with the old option is forgotten."""
    folder = tmp_path / "echo"
    put(folder, 1)
    running = server({"echo": {"path": str(folder)}}, model_control="explicit", load_models=["echo"])
    streams = streams_of(running)
    assert await streams.says() == "1"
    config = json.dumps({"parameters": {"chat_template": {"string_value": "say:{{ 'other' }}"}}})
    loaded = await streams.client.post("/v2/repository/models/echo/load", json={"parameters": {"config": config}})
    assert loaded.status_code == 200, loaded.text
    assert await streams.says() == "1other"


async def test_a_version_that_is_kept_answers_again_at_once(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams]
) -> None:
    folder = tmp_path / "echo"
    put(folder, 1)
    running = server({"echo": {"path": str(folder), "options": SLOW, "keep_previous_s": 60}}, poll_s=0.05)
    streams = streams_of(running)
    streams.begin(4)
    await becomes(lambda: streams.begun == 4, 20, "they stream")
    put(folder, 2)
    await streams.become("2")
    streams.begin(6)
    await becomes(lambda: streams.begun >= 8, 20, "they stream")
    shutil.rmtree(folder / "2")
    await streams.become("1")
    streams.begin(2)
    await streams.end()
    streams.check("1", "2")
    loads = [json.loads(line) for line in (running.log or Path()).read_text().splitlines() if "model_loading" in line]
    assert [one["version"] for one in loads] == [1, 2], "the first one had stayed"


async def test_a_label_keeps_its_version_while_the_newest_one_moves_on(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams]
) -> None:
    folder = tmp_path / "echo"
    put(folder, 1)
    running = server(
        {"echo": {"path": str(folder), "options": SLOW, "labels": {"live": 1, "next": 2}}}, poll_s=0.05, fronts=2
    )
    live, newest, labelled = (streams_of(running, name) for name in ("echo:live", "echo", "echo:next"))
    live.begin(6)
    newest.begin(6)
    await becomes(lambda: live.begun + newest.begun >= 4, 20, "they stream")
    assert await labelled.says() == ""
    put(folder, 2)
    await newest.become("2")
    assert (await live.says(), await labelled.says()) == ("1", "2")
    for one in (live, newest, labelled):
        one.begin(2)
    for one in (live, newest, labelled):
        await one.end()
    live.check("1")
    newest.check("1", "2")
    labelled.check("2")


@BOTH
async def test_unloading_under_streams_lets_them_end_and_refuses_others(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams], fronts: int
) -> None:
    folder = tmp_path / "echo"
    put(folder, 1)
    options = {**SLOW, "max_running": 1}  # between two of them, the version holds none
    running = server(
        {"echo": {"path": str(folder), "options": options}},
        model_control="explicit",
        load_models=["echo"],
        fronts=fronts,
    )
    streams = streams_of(running)
    streams.begin(5)
    await becomes(lambda: streams.begun >= 1, 20, "one streams, others wait")
    async with asyncio.timeout(10):
        while await streams.at_work() < 5:
            pass
    assert (await streams.client.post("/v2/repository/models/echo/unload")).status_code == 200
    body = {"model": "echo", "messages": [{"role": "user", "content": "say:x"}]}
    async with asyncio.timeout(10):
        for _ in itertools.count():  # a front may hear of it a moment later
            refused = await streams.client.post("/v1/chat/completions", json=body)
            if refused.status_code != 200:
                break
    assert refused.status_code in (404, 503), refused.text
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    await streams.end()
    streams.check("1")


@BOTH
async def test_streams_that_outlast_their_version_end_with_an_error_and_those_that_waited_go_on(
    server: ServerFactory, tmp_path: Path, streams_of: Callable[..., Streams], fronts: int
) -> None:
    folder = tmp_path / "echo"
    put(folder, 1)
    options: dict[str, Any] = {**SLOW, "context_tokens": 1 << 20}
    running = server(
        {"echo": {"path": str(folder), "options": options, "timeout_s": 1.0, "keep_previous_s": 0}},
        poll_s=0.05,
        fronts=fronts,
    )
    streams = streams_of(running)
    streams.begin(6, 100_000, **{"Penstock-Timeout-Ms": "60000"})
    await becomes(lambda: streams.begun >= 4, 20, "some stream, others wait")
    put(folder, 2)
    await becomes(lambda: len(streams.failures) == 4, 20, "those of the first version end")
    errors = [json.loads(one.removeprefix("data: "))["error"] for one in streams.failures]
    assert {one["code"] for one in errors} == {"engine_lost"}, errors
    assert all("the time to finish was up" in one["message"] for one in errors), errors
    await becomes(lambda: streams.begun == 6, 20, "what had not begun is answered by the second one")
    assert len(streams.tasks) == 2 and not streams.texts
