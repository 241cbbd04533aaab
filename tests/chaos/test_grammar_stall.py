"""A grammar over which llama.cpp does not come to an end: its callers get an error, and the next ones an answer."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from running_server import ServerFactory

# Every way to read the letters is followed for each token that might come next.
TANGLED = 'root ::= (w? " "? w?){1,300}\nw ::= [a-z]+\n'


@pytest.mark.timeout(180)
def test_an_engine_that_stands_still_is_replaced(server: ServerFactory, smollm2: Path) -> None:
    options = {"engine": "llamacpp", "context_tokens": 1024, "stall_s": 3}
    running = server({"m": {"path": str(smollm2), "options": options}})
    client = openai.OpenAI(base_url=running.http + "/v1", api_key="none", timeout=100, max_retries=0)
    question = [{"role": "user", "content": "Write a long story."}]
    with pytest.raises(openai.APIError):
        for _ in range(3):
            client.chat.completions.create(
                model="m", messages=question, max_tokens=600, temperature=1.5, extra_body={"guided_grammar": TANGLED}
            )  # type: ignore[call-overload]
    assert running.log is not None
    assert "llama.cpp said nothing for" in running.log.read_text()
    answer = client.with_options(max_retries=8).chat.completions.create(model="m", messages=question, max_tokens=4)  # type: ignore[call-overload]
    assert answer.usage.completion_tokens > 0
