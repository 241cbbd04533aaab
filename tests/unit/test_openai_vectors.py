from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from http_calls import Calls, json_of
from scripted_language import Script, ScriptDoor

from penstock.protocols.openai_http import plug


@pytest.fixture
def call() -> Calls:
    return Calls([plug], ScriptDoor(Script()))


async def post(call: Calls, path: str, **body: Any) -> Any:
    answer = await call("POST", path, orjson.dumps(body))
    return json_of(answer) if answer.status == 200 else (answer.status, json_of(answer)["error"]["param"])


@pytest.mark.parametrize(
    ("value", "count"), [("ab", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2), (["a", [1]], 2)]
)
async def test_every_kind_of_input(call: Calls, value: object, count: int) -> None:
    document = await post(call, "/v1/embeddings", model="m", input=value)
    assert document["object"] == "list" and document["model"] == "m"
    assert [item["index"] for item in document["data"]] == list(range(count))
    assert all(np.allclose(item["embedding"], [0.6, 0, 0.8, 0]) for item in document["data"])
    assert document["usage"]["prompt_tokens"] == document["usage"]["total_tokens"] > 0


async def test_base64_is_little_endian_float32(call: Calls) -> None:
    document = await post(call, "/v1/embeddings", model="m", input="a", encoding_format="base64")
    raw = base64.b64decode(document["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(raw, "<f4"), np.float32([0.6, 0, 0.8, 0]))


async def test_fewer_dimensions_have_length_one(call: Calls) -> None:
    document = await post(call, "/v1/embeddings", model="m", input="a", dimensions=2)
    assert document["data"][0]["embedding"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": ["a", ""]}, "input[1]"),
        ({"input": 3}, "input"), ({"input": [1, "a"]}, "input[1]"), ({"input": [300]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"), ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"), ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "model": "polite"}, "model"), ({"input": "a", "dimension": 2}, "dimension"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(call: Calls, body: dict[str, Any], param: str) -> None:
    assert await post(call, "/v1/embeddings", **{"model": "m", **body}) == (400, param)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokens_there_and_back(call: Calls, prefix: str) -> None:
    document = await post(call, f"{prefix}/tokenize", model="m", prompt="hé")
    assert document == {"count": 4, "max_model_len": 64, "tokens": [1, 104, 195, 169], "token_strs": None}
    bare = await post(call, f"{prefix}/tokenize", prompt="ab", add_special_tokens=False, return_token_strs=True)
    assert bare["tokens"] == [97, 98] and bare["token_strs"] == ["a", "b"]
    assert await post(call, f"{prefix}/detokenize", tokens=[104, 195, 169]) == {"prompt": "hé"}
    assert await post(call, f"{prefix}/detokenize", tokens=[256]) == (400, "tokens")
    assert await post(call, f"{prefix}/detokenize") == (400, "tokens")
    assert await post(call, f"{prefix}/tokenize") == (400, "prompt")


async def test_the_tokens_of_a_conversation_have_no_more_around_them(call: Calls) -> None:
    document = await post(call, "/tokenize", messages=[{"role": "user", "content": "hi"}])
    assert bytes(document["tokens"]) == b"user:hi"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_come_in_order(call: Calls, path: str) -> None:
    documents = ["a", {"text": "ccc"}, "bb"]
    document = await post(call, path, model="m", query="q", documents=documents, top_n=2)
    assert [(hit["index"], hit["relevance_score"]) for hit in document["results"]] == [(1, 0.3), (2, 0.2)]
    assert document["results"][0]["document"] == {"text": "ccc"} and document["usage"]["total_tokens"] == 9
    bare = await post(call, path, query="q", documents=documents, return_documents=False)
    assert "document" not in bare["results"][0] and len(bare["results"]) == 3
    assert await post(call, path, query="q", documents=[]) == (400, "documents")
    assert await post(call, path, documents=["a"]) == (400, "query")
    assert await post(call, path, query="q", documents=["a", 1]) == (400, "documents[1]")


async def test_scores_of_one_against_many_and_of_pairs(call: Calls) -> None:
    document = await post(call, "/v1/score", text_1="q", text_2=["a", "bb"])
    assert [item["score"] for item in document["data"]] == [0.1, 0.2] and document["object"] == "list"
    pairs = await post(call, "/score", queries=["q", "r"], documents=["a", "bb"])
    assert [item["score"] for item in pairs["data"]] == [0.1, 0.2]
    assert await post(call, "/score", text_1=["q", "r"], text_2=["a"]) == (400, "text_2")
    assert await post(call, "/score", text_1="q") == (400, "text_2")


async def test_classes(call: Calls) -> None:
    document = await post(call, "/v1/classify", input=["a", "b"])
    assert document["data"][1] == {"index": 1, "label": "good", "probs": [0.25, 0.75], "num_classes": 2}
    assert await post(call, "/v1/classify") == (400, "input")
