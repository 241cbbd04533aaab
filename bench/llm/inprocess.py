"""An engine's library driven in this process, with nothing around it: the limit that a server is compared with.

    python bench/llm/inprocess.py ENGINE MODEL THREADS OPTIONS

Reads lines of JSON, `{"prompts": [[ids]], "tokens": 32, "at_once": 4}`, and answers each with a line: the seconds that
it took, and of each prompt its text and tokens and when they came. With `"ids": true` the engine is asked one prompt
after the other, for token ids; with `"serve": 8` it answers so many requests over HTTP, as `relay.py` does. The library
is set up by our own adapter, so that its settings are the server's, and is then driven in the quickest way that it has:
OpenVINO by stepping its pipeline in a plain loop, llama.cpp by a thread for each sequence.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from llm.client import Answer
from llm.relay import Relay


def main() -> None:
    name, path, threads, options = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print is no answer
    engine = load(name, path, threads, options)
    drive = {"openvino": OpenVino, "llamacpp": Llama}[name](engine, path)
    relay = Relay(drive.add, drive.step) if isinstance(drive, OpenVino) else None
    told.write(json.dumps({"ready": True, "port": relay.port if relay else 0}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        if relay is not None and "serve" in asked:
            relay.serve(asked["serve"])
            told.write("[]\n")
            continue
        prompts, tokens = asked["prompts"], asked["tokens"]
        if asked.get("ids"):
            told.write(json.dumps(asyncio.run(token_ids(engine, prompts, tokens))) + "\n")
            continue
        began = time.perf_counter()
        answers = drive.run(prompts, tokens, asked["at_once"])
        wall_s = time.perf_counter() - began
        drive.spell(answers)
        told.write(json.dumps([wall_s, [asdict(answer) for answer in answers]]) + "\n")


def load(name: str, path: Path, threads: int, options: dict[str, Any]) -> Any:
    from penstock.core.servable import LoadContext
    from penstock.language.files import look
    from penstock.runtime.adapters.language import engine_context
    from penstock.runtime.engines import llamacpp, openvino

    plug = {"openvino": openvino, "llamacpp": llamacpp}[name].plug
    context = LoadContext(name=name, version=1, device="cpu", threads=threads, options=options)
    return plug.load(look(path), engine_context(context))


async def token_ids(engine: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The ids that the engine generates for each prompt, alone."""
    from penstock.core.language import Generation, Sampling

    found = []
    for number, prompt in enumerate(prompts):
        asked = Generation(f"{number}", tuple(prompt), tokens, Sampling(temperature=0, ignore_eos=True))
        found.append([token async for delta in engine.generate(asked) for token in delta.token_ids])
    return found


class OpenVino:
    """The pipeline stepped in a loop."""

    def __init__(self, engine: Any, path: Path) -> None:
        from penstock.language.files import look
        from penstock.language.tokenizer import open_tokenizer

        self._pipeline = engine._pipeline
        self._ends = engine._ends
        self._tokenizer = open_tokenizer(look(path))
        self._count = 1 << 40  # far from the engine's own numbers

    def add(self, ids: list[int], tokens: int) -> Any:
        """Begins a generation of so many tokens."""
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig(max_new_tokens=tokens)
        config.ignore_eos = True
        if self._ends:
            config.eos_token_id = self._ends[0]
        self._count += 1
        return self._pipeline.add_request(self._count, openvino.Tensor(np.array([ids], np.int64)), config)

    def step(self) -> None:
        self._pipeline.step()

    def run(self, prompts: list[list[int]], tokens: int, at_once: int) -> list[Answer]:
        waiting = collections.deque(enumerate(prompts))
        running: list[tuple[float, Any, Answer]] = []
        answers = [Answer() for _ in prompts]
        while waiting or running:
            while waiting and len(running) < at_once:
                number, ids = waiting.popleft()
                sent = time.perf_counter()
                running.append((sent, self.add(ids, tokens), answers[number]))
            self.step()
            now = time.perf_counter()
            for sent, handle, answer in running:
                while handle.can_read():
                    for output in handle.read().values():
                        answer.token_ids += output.generated_ids
                        answer.times_s.append(now - sent)
            running = [each for each in running if len(each[2].token_ids) < tokens]
        return answers

    def spell(self, answers: list[Answer]) -> None:
        """Text is made afterwards: a server's is part of its cost."""
        from penstock.language.detokenise import Detokeniser

        for answer in answers:
            detokeniser = Detokeniser(self._tokenizer)
            answer.text = "".join(map(detokeniser.feed, answer.token_ids)) + detokeniser.finish()
            answer.tokens = len(answer.token_ids)


class Llama:
    """A thread for each sequence, and the package's calls in process."""

    def __init__(self, engine: Any, path: Path) -> None:
        self._server = engine._server
        self._cached = engine._cached

    def run(self, prompts: list[list[int]], tokens: int, at_once: int) -> list[Answer]:
        answers = [Answer() for _ in prompts]
        numbers = iter(range(len(prompts)))

        def work() -> None:
            for number in numbers:
                self._one(prompts[number], tokens, answers[number])

        threads = [threading.Thread(target=work) for _ in range(min(at_once, len(prompts)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def _one(self, ids: list[int], tokens: int, answer: Answer) -> None:
        body = {
            "prompt": ids, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True,
            "cache_prompt": self._cached, "repeat_penalty": 1.0,
        }  # fmt: skip
        sent = time.perf_counter()

        def take(part: Any) -> bool:
            for each in part if isinstance(part, list) else [part]:
                if "choices" not in each:
                    raise SystemExit(f"llama.cpp says: {each}")
                text = each["choices"][0]["text"] if each["choices"] else ""
                if text:
                    answer.text += text
                    answer.times_s.append(time.perf_counter() - sent)
                if "usage" in each:
                    answer.tokens = each["usage"]["completion_tokens"]
            return False

        self._server.handle_completions(body, take)

    def spell(self, answers: list[Answer]) -> None:
        """It is spelt."""


if __name__ == "__main__":
    main()
