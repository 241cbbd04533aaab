"""A real model on two engines: what OpenVINO lacks, llama.cpp answers under the same name."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI
from running_server import ServerFactory

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]


def test_likeliest_alternatives_come_from_the_other_engine(server: ServerFactory, smollm2: Path) -> None:
    small = {"context_tokens": 1024, "max_running": 2}
    running = server(
        {
            "chat": {
                "path": str(smollm2), "options": {**small, "engine": "openvino", "fallback_model": "chat-llama"},
            },
            "chat-llama": {"path": str(smollm2), "options": {**small, "engine": "llamacpp"}},
        },
        fronts=2,
    )  # fmt: skip
    client = OpenAI(base_url=running.http + "/v1", api_key="none", max_retries=0)
    asked = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    own = client.chat.completions.with_raw_response.create(**asked)
    assert own.headers.get("penstock-answered-by") is None
    raw = client.chat.completions.with_raw_response.create(**asked, logprobs=True, top_logprobs=5)
    assert raw.headers["penstock-answered-by"] == "chat-llama:1"
    answer = raw.parse()
    assert answer.model == "chat"
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens and all(len(one.top_logprobs) == 5 for one in tokens)
    assert all(one.token == one.top_logprobs[0].token for one in tokens), "greedy takes the likeliest"
    streamed = client.chat.completions.create(**asked, logit_bias={"2": -100}, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**asked, extra_body={"prompt_logprobs": 2})
    assert refused.value.param == "prompt_logprobs" and "nor can its fallback_model" in str(refused.value)
