"""What a model is worth: its perplexity on a text, and the tokens per second of a single stream, each with the engine
that runs it. Measured in a process of its own: a native abort is told, and memory is given back.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.core.errors import InvalidInput, LoadError, PenstockError

SPEED_TOKENS = 64
_PROMPT_TOKENS = 32
_CONTEXT_TOKENS = 512
_LONGEST_S = 3600.0
_SPEED_RUNS = 3  # the best counts: what else runs on the machine only slows


@dataclass(frozen=True, slots=True)
class Figures:
    """`perplexity` is e to the mean of -log p over `tokens` tokens, each after at most 511 others."""

    engine: str
    perplexity: float
    tokens: int
    tokens_per_s: float


def measure(model: Path, engine: str, text: str, threads: int) -> Figures:
    """The figures of a GGUF file with `llamacpp`, or of an OpenVINO folder with `openvino`.

    Raises: LoadError with the process's last words.
    """
    command = [sys.executable, "-c", f"from {__name__} import main; main()", os.fspath(model), engine, str(threads)]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=environment,
    ) as child:  # fmt: skip
        try:
            said, noise = child.communicate(json.dumps(text) + "\n", timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            raise LoadError(f"measuring {model.name} took longer than {_LONGEST_S:.0f} s") from None
        finally:
            child.kill()
    lines = said.strip().splitlines() or [""]
    if child.returncode:
        told = lines[-1][2:] if lines[-1].startswith("! ") else " ".join(noise.split())[-400:]
        raise LoadError(f"{model.name} cannot be measured (exit {child.returncode}): {told}")
    return Figures(**json.loads(lines[-1]))


def chunks_of(ids: list[int], begin: int | None, length: int) -> list[list[int]]:
    """Pieces of at most `length` ids; where the tokenizer begins texts with `begin`, each piece begins so."""
    if begin is not None and ids[:1] == [begin]:
        step = length - 1
        pieces = [[begin, *ids[at : at + step]] for at in range(1, len(ids), step)]
    else:
        pieces = [ids[at : at + length] for at in range(0, len(ids), length)]
    return [piece for piece in pieces if len(piece) > 1]


def _figures(model: Path, engine: str, text: str, threads: int) -> Figures:
    from penstock.language.files import look
    from penstock.language.tokenizer import open_tokenizer
    from penstock.runtime.conversion import graph_logits, llama_logits

    files = look(model)
    words = open_tokenizer(files)
    chunks = chunks_of(words.encode(text), words.bos, llama_logits.CHUNK_TOKENS)
    if not chunks:
        raise InvalidInput("the text has too few tokens to measure")
    read = llama_logits if engine == "llamacpp" else graph_logits
    found = read.log_probabilities(model, chunks, threads)
    perplexity = math.exp(-sum(found) / len(found))
    speed = asyncio.run(_speed(model, engine, tuple(chunks[0][:_PROMPT_TOKENS]), threads))
    return Figures(engine, perplexity, len(found), speed)


async def _speed(model: Path, engine: str, prompt: tuple[int, ...], threads: int) -> float:
    from penstock.core.language import Generation, Sampling
    from penstock.language.files import look
    from penstock.runtime.engines import EngineContext
    from penstock.runtime.language.choice import choose

    files = look(model)
    with tempfile.TemporaryDirectory() as cache:
        context = EngineContext(
            "measured", threads=threads, context_tokens=_CONTEXT_TOKENS, max_running=1, cache=Path(cache)
        )
        loaded = choose(files, "cpu", engine).load(files, context)
        best = 0.0
        for run in range(_SPEED_RUNS):
            asked = Generation(f"speed{run}", prompt, SPEED_TOKENS, Sampling(temperature=0, ignore_eos=True))
            count, began = 0, 0.0
            async for delta in loaded.generate(asked):
                if not began:
                    began = time.monotonic()  # the first token tells the end of the prompt
                else:
                    count += len(delta.token_ids)
            best = max(best, count / (time.monotonic() - began))
        await loaded.close()
        return best


def main() -> None:
    """The child: the text as JSON in one line of standard input, the figures as the last line of standard output."""
    text = json.loads(sys.stdin.readline())
    try:
        figures = _figures(Path(sys.argv[1]), sys.argv[2], text, int(sys.argv[3]))
    except (PenstockError, RuntimeError, ValueError, OSError, MemoryError) as error:
        print("! " + " ".join(str(error).split()), flush=True)
        os._exit(1)
    print(json.dumps(asdict(figures)), flush=True)
    os._exit(0)  # engines' threads may still be at work
