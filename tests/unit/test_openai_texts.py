from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from http_calls import Calls, json_of
from scripted_language import Script, ScriptDoor, pieces_of

from penstock.core.errors import Overloaded, PenstockError
from penstock.core.language import Began, Event, Finished, Text, TextToken, Usage
from penstock.protocols.openai_http import plug

BEGAN = Began(2, "m", "3")
USAGE = Usage(2, 1, cached_tokens=1)


def said(text: str, *tokens: TextToken) -> list[Event | PenstockError]:
    return [BEGAN, Text(0, text, tokens), Finished(0, "length"), USAGE]


def token(text: str, logprob: float, raw: bytes | None = None) -> TextToken:
    raw = text.encode() if raw is None else raw
    return TextToken(1, text, raw, logprob, ((1, text, raw, logprob), (2, "z", b"z", -3.0)))


class Texts:
    def __init__(self) -> None:
        self.script = Script([said("yes")])
        self.calls = Calls([plug], ScriptDoor(self.script))

    async def __call__(self, **body: Any) -> Any:
        return await self.calls("POST", "/v1/completions", orjson.dumps({"model": "m", "prompt": "a", **body}))

    async def chunks(self, **body: Any) -> list[Any]:
        sent = await pieces_of(await self(stream=True, **body))
        *lines, last = sent.decode().removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]"
        return [orjson.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture
def texts() -> Texts:
    return Texts()


async def test_one_prompt(texts: Texts) -> None:
    document = json_of(await texts())
    assert document["object"] == "text_completion" and document["id"].startswith("cmpl-")
    assert document["choices"] == [
        {"index": 0, "text": "yes", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert texts.script.asks[0].prompt == "a" and texts.script.asks[0].max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
)
async def test_every_kind_of_prompt(texts: Texts, prompt: object, expected: list[object]) -> None:
    document = json_of(await texts(prompt=prompt))
    assert sorted(map(repr, expected)) == sorted(repr(ask.prompt) for ask in texts.script.asks)
    assert [choice["index"] for choice in document["choices"]] == list(range(len(expected)))
    assert document["usage"]["prompt_tokens"] == 2 * len(expected)
    assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": len(expected)}
    assert texts.script.closed == len(expected)


async def test_a_stream_numbers_the_choices_of_all_prompts(texts: Texts) -> None:
    texts.script.answers = [[BEGAN, Text(1, "x"), Finished(1, "stop"), Text(0, "y"), Finished(0, "stop"), USAGE]]
    *chunks, last = await texts.chunks(prompt=["a", "b"], n=2, stream_options={"include_usage": True})
    told: dict[int, list[Any]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        told.setdefault(choice["index"], []).append((choice["text"], choice["finish_reason"]))
    assert told == {at: [("yxyx"[at], None), ("", "stop")] for at in range(4)}
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 6


async def test_special_tokens_may_be_left_out(texts: Texts) -> None:
    await texts(add_special_tokens=False)
    assert texts.script.asks[0].prompt == (97,)


async def test_logprobs_in_the_older_shape(texts: Texts) -> None:
    half = token("", -1.0, b"\xc3")
    texts.script.answers = [[BEGAN, Text(0, "ab", (token("ab", -0.5), half)), Text(0, "é", (token("é", -0.25, b"\xa9"),)),
                             Finished(0, "stop"), USAGE]]  # fmt: skip
    body = {"logprobs": 2}
    expected = {
        "tokens": ["ab", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-0.5, -1.0, -0.25],
        "top_logprobs": [{"ab": -0.5, "z": -3.0}, {"bytes:\\xc3": -1.0, "z": -3.0}, {"bytes:\\xa9": -0.25, "z": -3.0}],
        "text_offset": [0, 2, 2],
    }
    assert json_of(await texts(**body))["choices"][0]["logprobs"] == expected
    pieces = [chunk["choices"][0]["logprobs"] for chunk in await texts.chunks(**body)]
    joined = {key: [one for piece in pieces if piece for one in piece[key]] for key in expected}
    assert joined == expected


async def test_echo_with_logprobs_leaves_the_first_unknown(texts: Texts) -> None:
    prompt = Text(0, "ab", (token("a", float("nan")), token("b", -2.0)), prompt=True)
    texts.script.answers = [[BEGAN, prompt, Text(0, "c", (token("c", -0.5),)), Finished(0, "stop"), USAGE]]
    choice = json_of(await texts(echo=True, logprobs=1))["choices"][0]
    ask = texts.script.asks[0]
    assert (ask.echo, ask.logprobs, ask.prompt_logprobs) == (True, 1, 1)
    assert choice["text"] == "abc"
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -0.5]
    assert choice["logprobs"]["top_logprobs"][0] is None and choice["logprobs"]["text_offset"] == [0, 1, 2]


async def test_scoring_a_prompt_shows_nothing_else(texts: Texts) -> None:
    prompt = Text(0, "ab", (token("a", float("nan")), token("b", -2.0)), prompt=True)
    texts.script.answers = [[BEGAN, prompt, Text(0, "c", (token("c", -0.5),)), Finished(0, "length"), USAGE]]
    document = json_of(await texts(echo=True, logprobs=1, max_tokens=0))
    assert document["choices"][0]["text"] == "ab" and document["usage"]["completion_tokens"] == 0
    assert document["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    assert "".join(c["choices"][0]["text"] for c in await texts.chunks(echo=True, max_tokens=0)) == "ab"


async def test_the_best_of_several(texts: Texts) -> None:
    texts.script.answers = [[
        BEGAN, Text(0, "bad", (token("bad", -2.0),)), Text(1, "good", (token("good", -0.1),)),
        Text(2, "fair", (token("fair", -1.0), token("", -0.5))), *(Finished(at, "stop") for at in range(3)), USAGE,
    ]]  # fmt: skip
    choices = json_of(await texts(best_of=3, n=2))["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == [(0, "good"), (1, "fair")]
    assert texts.script.asks[0].n == 3 and choices[0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"), ({"prompt": [-1]}, "prompt[0]"), ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a"] * 2049}, "prompt"), ({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"), ({"suffix": "x"}, "suffix"), ({"logprobs": 21}, "logprobs"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"), ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(texts: Texts, body: dict[str, Any], param: str) -> None:
    answer = await texts(**body)
    assert answer.status == 400 and json_of(answer)["error"]["param"] == param
    assert texts.script.asks == []


async def test_one_failing_prompt_fails_the_request_and_ends_the_others(texts: Texts) -> None:
    texts.script.answers = [said("a"), [Overloaded("full")], said("b")]
    assert (await texts(prompt=["a", "b", "c"])).status == 503
    assert texts.script.closed == len(texts.script.asks)


async def test_a_stream_that_is_closed_ends_its_asks(texts: Texts) -> None:
    answer = await texts(prompt=["a", "b", "c"], stream=True)
    await anext(answer.pieces)
    await answer.pieces.aclose()
    await asyncio.sleep(0)
    assert texts.script.closed == len(texts.script.asks)


async def test_cached_tokens_of_several_prompts_are_told_when_all_are_known(texts: Texts) -> None:
    texts.script.answers = [[Began(2, "m", "3"), Text(0, "a"), Finished(0, "stop"), Usage(2, 1, cached_tokens=known)]
                            for known in (1, -1)]  # fmt: skip
    assert "prompt_tokens_details" not in json_of(await texts(prompt=["a", "b"]))["usage"]
    texts.script.asks.clear()
    assert json_of(await texts(prompt=["a"]))["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
