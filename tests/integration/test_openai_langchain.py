"""LangChain's OpenAI classes against a real server: invoke, stream, tools, structured output, embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

KEY = SecretStr("none")


class Weather(BaseModel):
    """How it is outside."""

    sky: Literal["clear", "grey"]
    windy: bool


@tool
def look_up(city: Literal["Rome", "Paris"]) -> str:
    """Finds a city."""
    return city


@pytest.fixture(scope="module")
def address(shared_server: Any, tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> str:
    path = tmp_path_factory.mktemp("echo") / "echo.llmecho"
    path.touch()
    smol = {"path": str(smollm2), "threads": 1, "options": {"engine": "llamacpp", "context_tokens": 2048}}
    return str(shared_server({"echo": str(path), "smol": smol}).http) + "/v1"


def model(address: str, name: str = "echo", **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=address, api_key=KEY, max_retries=0, temperature=0, **options)


def test_invoke(address: str) -> None:
    answer = model(address).invoke([SystemMessage("be brief"), HumanMessage("say:hello")])
    assert answer.content == "hello" and answer.response_metadata["finish_reason"] == "stop"
    assert isinstance(answer.usage_metadata, dict) and answer.usage_metadata["output_tokens"] == 6


def test_stream(address: str) -> None:
    chunks = list(model(address, stream_usage=True).stream("say:héllo"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert isinstance(whole, AIMessageChunk) and whole.content == "héllo"
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] == 7


async def test_asynchronous(address: str) -> None:
    assert (await model(address).ainvoke("say:abc")).content == "abc"
    parts = [str(chunk.content) async for chunk in model(address).astream("say:abc")]
    assert "".join(parts) == "abc" and len(parts) > 3


def test_batch(address: str) -> None:
    assert [answer.content for answer in model(address).batch(["say:a", "say:b"])] == ["a", "b"]


def test_tools(address: str) -> None:
    bound = model(address, "smol", max_completion_tokens=60).bind_tools([look_up], tool_choice="look_up")
    answer = bound.invoke("Where is Rome?")
    (call,) = answer.tool_calls  # type: ignore[attr-defined]
    assert call["name"] == "look_up" and call["args"]["city"] in ("Rome", "Paris")


def test_structured_output(address: str) -> None:
    for method in ("json_schema", "function_calling"):
        held = model(address, "smol", max_completion_tokens=60).with_structured_output(Weather, method=method)
        assert isinstance(held.invoke("It rains."), Weather), method


def test_embeddings(address: str) -> None:
    # Ids of another tokenizer mean nothing to this model, so the texts are sent.
    embeddings = OpenAIEmbeddings(model="echo", base_url=address, api_key=KEY, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["a", "b"])
    assert len(first) == 8 and first != second and embeddings.embed_query("a") == pytest.approx(first)
