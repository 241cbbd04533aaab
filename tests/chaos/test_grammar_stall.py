"""Grammars that llama.cpp would follow in thousands of ways: refused or made harmless before it sees them, and others'
streams go on. What stands still all the same is ended, and replaced."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from running_server import ServerFactory

# Every way to read the letters is followed for each token that might come next.
TANGLED = 'root ::= (w? " "? w?){1,300}\nw ::= [a-z]+\n'
QUESTION: Any = [{"role": "user", "content": "Write a long story."}]
HOSTILE: list[tuple[str, Any]] = [
    ("guided_grammar", TANGLED),
    ("guided_grammar", 'root ::= s\ns ::= [a-z ] t | [a-z ]\nt ::= s s | s\n'),  # S S | "a"
    ("guided_grammar", 'root ::= [a-z ] root "b" | [a-z] root | [a-z ] root | "."\n'),
    ("guided_grammar", 'root ::= ([a-z ]*)* ([a-z ]*)* "."\n'),
    ("guided_grammar", 'root ::= "a" root "a" | ' + " | ".join(f'[a-z ]{{{at},}} "{at}"' for at in range(200)) + "\n"),
    ("guided_regex", "(([a-z ]|[a-e]|[a-f])*)*x"),
    ("guided_regex", "([a-z ]?){50}[a-z ]{50}"),
    ("guided_regex", "([a-z]{1,300} ?){1,300}"),
    ("guided_regex", "[a-z ]*a[a-z ]{300}"),
    ("guided_json", {"type": "object", "properties": {"a": {"type": "string", "pattern": "^([a-z]{1,300} ?){1,300}$"}},
                     "required": ["a"]}),
    ("guided_json", {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "(([a-z]+)? ?([a-z]+)?)+!"}}),
]  # fmt: skip


@pytest.mark.timeout(240)
def test_tangled_grammars_leave_the_streams_of_others_alone(server: ServerFactory, smollm2: Path) -> None:
    options = {"engine": "llamacpp", "context_tokens": 2048, "max_running": 4, "stall_s": 20}
    running = server({"m": {"path": str(smollm2), "options": options}})
    client = openai.OpenAI(base_url=running.http + "/v1", api_key="none", timeout=200, max_retries=0)
    done = threading.Event()
    ends: list[object] = []
    gaps: list[float] = []

    def neighbour() -> None:
        last = time.monotonic()
        try:
            while not done.is_set():
                more = {"ignore_eos": True}
                stream = client.chat.completions.create(
                    model="m", messages=QUESTION, max_tokens=300, stream=True, extra_body=more
                )
                for chunk in stream:
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                    ends.extend(choice.finish_reason for choice in chunk.choices if choice.finish_reason)
                    if done.is_set():
                        return
        except openai.APIError as error:
            ends.append(error)

    beside = threading.Thread(target=neighbour)
    beside.start()
    answered = refused = 0
    try:
        for name, value in HOSTILE:
            try:
                client.chat.completions.create(
                    model="m", messages=QUESTION, max_tokens=12, temperature=1.5, seed=1, extra_body={name: value}
                )
                answered += 1
            except openai.BadRequestError as error:
                assert "too many ways at once" in str(error) and name in str(error)
                refused += 1
    finally:
        done.set()
        beside.join()
    assert answered >= 4 and refused >= 4
    assert not [end for end in ends if end != "length"] and gaps
    assert max(gaps) < 20  # a stall is minutes


ALONE = """
import asyncio, sys
from pathlib import Path
from penstock.core.language import Generation, Grammar, Sampling
from penstock.language import files
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.llamacpp import plug

async def run(engine):
    hot = Sampling(temperature=1.5, seed=1)
    async for _ in engine.generate(Generation("g", (1, 4093, 198), 600, hot, grammar=Grammar("ebnf", sys.argv[2]))):
        pass

context = EngineContext("m", context_tokens=1024, max_running=1, options={"stall_s": 2})
asyncio.run(run(plug.load(files.look(Path(sys.argv[1])), context)))
"""


@pytest.mark.timeout(180)
def test_an_engine_that_stands_still_ends_itself(smollm2: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", ALONE, str(smollm2), TANGLED], capture_output=True, text=True, check=False, timeout=150
    )
    assert found.returncode == 70, found.stderr[-2000:]
    assert "llama.cpp said nothing for" in found.stderr
