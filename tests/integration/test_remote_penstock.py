"""A model served by another Penstock: `penstock serve NAME.upstream.toml`, two real servers and the official client."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from gguf_models import write_bert
from running_server import RunningServer, ServerFactory

HELLO = [{"role": "user", "content": "Say hello."}]


def upstream(folder: Path, *tables: str, top: str = "") -> Path:
    path = folder / "far.upstream.toml"
    path.write_text(top + "\n" + "\n".join(f"[[upstream]]\n{table}" for table in tables))
    path.chmod(0o600)
    return path


def at(server: RunningServer, model: str, more: str = "") -> str:
    return f"url = '{server.http}/v1'\nmodel = '{model}'\n{more}"


def client(server: RunningServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.mark.engines
@pytest.mark.timeout(280)
def test_what_another_server_says_is_what_is_said_here(
    server: ServerFactory, smollm2: Path, minilm: Path, tmp_path: Path
) -> None:
    write_bert(minilm, tmp_path / "minilm.gguf")
    options = {"engine": "llamacpp", "max_running": 4, "context_tokens": 1024}
    there = server(
        {"smol": {"path": str(smollm2), "options": options},
         "minilm": {"path": str(tmp_path / "minilm.gguf"), "options": {"engine": "llamacpp"}}},
        api_key="far-key",
    )  # fmt: skip
    (tmp_path / "vectors").mkdir()
    here = server(
        {"far": str(upstream(tmp_path, at(there, "smol", "key = 'far-key'"))),
         "vectors": str(upstream(tmp_path / "vectors", at(there, "minilm", "key = 'far-key'"), top="embeds = true"))},
        api_key="near-key",
    )  # fmt: skip
    far, near = client(there, "far-key"), client(here, "near-key")
    assert {model.id for model in near.models.list()} >= {"far", "vectors"}
    for wrong in ("far-key", "none"):
        with pytest.raises(openai.AuthenticationError):
            client(here, wrong).chat.completions.create(model="far", messages=HELLO)

    ask = {"messages": HELLO, "max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    said, expected = near.chat.completions.create(model="far", **ask), far.chat.completions.create(model="smol", **ask)
    assert said.choices[0].message.content == expected.choices[0].message.content
    assert said.choices[0].finish_reason == expected.choices[0].finish_reason
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    assert [token.token for token in said.choices[0].logprobs.content] == [
        token.token for token in expected.choices[0].logprobs.content
    ]
    assert len(said.choices[0].logprobs.content[0].top_logprobs) == 2

    chunks = list(near.chat.completions.create(
        model="far", messages=HELLO, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words == expected.choices[0].message.content and chunks[-1].usage.completion_tokens == 12

    biased = near.chat.completions.create(
        model="far", messages=HELLO, max_tokens=3, temperature=0, logit_bias={"400": 100}
    )
    assert biased.choices[0].message.content == far.chat.completions.create(
        model="smol", messages=HELLO, max_tokens=3, temperature=0, logit_bias={"400": 100}
    ).choices[0].message.content  # fmt: skip

    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    held = near.chat.completions.create(model="far", messages=HELLO, max_tokens=40, response_format=format)
    assert json.loads(held.choices[0].message.content)["n"] in (1, 2)

    tool = {"type": "function", "function": {"name": "pick", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "pick"}}
    called = near.chat.completions.create(model="far", messages=HELLO, max_tokens=60, tools=[tool], tool_choice=choice)
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "pick" and json.loads(call.function.arguments)["n"] in (1, 2)

    texts = ["a cat sits", "stock markets fell", "é"]
    got = near.embeddings.create(model="vectors", input=texts).data
    real = far.embeddings.create(model="minilm", input=texts).data
    for one, other in zip(got, real, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-4)

    with pytest.raises(openai.BadRequestError, match="top_k"):
        near.chat.completions.create(model="far", messages=HELLO, extra_body={"top_k": 3})
    with pytest.raises(openai.BadRequestError):  # too long there
        near.chat.completions.create(model="far", messages=[{"role": "user", "content": "word " * 3000}])


@pytest.mark.timeout(120)
def test_second_answers_when_the_first_dies_but_not_in_the_middle(
    server: ServerFactory, llmecho: Path, tmp_path: Path
) -> None:
    slow = {"path": str(llmecho), "options": {"delay_s": 0.05}}
    first, second = server({"m": slow}), server({"m": str(llmecho)})
    here = server({"far": str(upstream(tmp_path, at(first, "m"), at(second, "m")))})
    near = client(here)
    long = [{"role": "user", "content": "say:" + "words " * 200}]
    stream = near.chat.completions.create(model="far", messages=long, stream=True)
    got = 0
    with pytest.raises(openai.APIError):
        for _ in stream:
            got += 1
            if got == 3:
                first.process.kill()
    assert got >= 3
    answer = near.chat.completions.create(
        model="far", messages=[{"role": "user", "content": "say:hello"}], max_tokens=40
    )
    assert answer.choices[0].message.content
    second.process.kill()
    second.process.wait()
    with pytest.raises(openai.APIStatusError) as none:
        near.chat.completions.create(model="far", messages=HELLO, max_tokens=5)
    assert none.value.status_code >= 500
