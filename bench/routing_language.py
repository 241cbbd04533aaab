"""Balancing of language models: round robin, least in flight and prefix-aware, on time to first token and throughput.

    python bench/routing_language.py MODEL.gguf [--replicas 3] [--turns 3] [--at-once 3] [--engine penstock|llamacpp]

Starts replicas of one model, each with one thread, and a router for each way of balancing in front of the same
replicas. Every workload is sent through each router, in an order that is drawn for each turn, so that whatever else the
machine does falls on all of them, and with words of its own each time, so that no turn finds in the replicas' caches
what another one left there.
Callers wait for an answer before they ask again. `--engine llamacpp` runs llama.cpp's own server (xllamacpp) in place
of `penstock serve`: the same engine without the runtime around it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

POLICIES = ("round_robin", "least", "prefix")
MODEL = "chat"
WORDS = (
    "river", "mountain", "letter", "window", "garden", "machine", "winter", "paper", "silver", "bridge", "candle",
    "forest", "market", "engine", "island", "morning", "pocket", "shadow", "travel", "yellow", "number", "copper",
)  # fmt: skip

LLAMACPP = """
import sys, time, xllamacpp as x
p = x.CommonParams()
p.model.path, p.port = sys.argv[1], int(sys.argv[2])
p.n_parallel, p.n_ctx = 4, 16384
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.warmup = False
server = x.Server(p)
print(server.listening_address, flush=True)
time.sleep(1e9)
"""


@dataclass
class Ask:
    """One request, and what became of it. `then` are asked after its answer, one after the other."""

    messages: list[dict[str, str]]
    output: int
    first_s: float = 0.0
    tokens: int = 0
    then: list[Ask] = field(default_factory=list)


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(count))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(dice: random.Random) -> list[Ask]:
    """Six documents, and four questions about each, one after the other."""
    found = []
    for _ in range(6):
        history = [said("user", f"{words(dice, 150)}. What is this?")]
        turns = [Ask([*history], 8)]
        for _ in range(3):
            history += [said("assistant", words(dice, 12)), said("user", f"And what of {words(dice, 8)}?")]
            turns.append(Ask([*history], 8))
        turns[0].then = turns[1:]
        found.append(turns[0])
    return found


def shared_prompts(dice: random.Random) -> list[Ask]:
    """Five long system prompts, and 24 short questions, each below one of them."""
    prompts = [words(dice, 150) for _ in range(5)]
    return [Ask([said("system", dice.choice(prompts)), said("user", words(dice, 10))], 8) for _ in range(24)]


def nothing_shared(dice: random.Random) -> list[Ask]:
    return [Ask([said("user", words(dice, 60))], 8) for _ in range(18)]


def skewed(dice: random.Random) -> list[Ask]:
    """Most are short, a few are long, in what is read and in what is written."""
    return [
        Ask([said("user", words(dice, min(300, int(dice.lognormvariate(3.0, 1.1)))))], 24 if dice.random() < 0.2 else 4)
        for _ in range(20)
    ]  # fmt: skip


WORKLOADS: dict[str, Callable[[random.Random], list[Ask]]] = {
    "conversations": conversations, "shared prompts": shared_prompts, "nothing shared": nothing_shared,
    "skewed sizes": skewed,
}  # fmt: skip


async def stream(session: aiohttp.ClientSession, address: str, ask: Ask) -> None:
    """Asks, and notes when the first token came and how many did."""
    body = {"model": MODEL, "messages": ask.messages, "max_tokens": ask.output, "stream": True, "temperature": 0}
    began = time.perf_counter()
    async with session.post(f"http://{address}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            if choices[0].get("delta", {}).get("content"):
                ask.first_s = ask.first_s or time.perf_counter() - began
                ask.tokens += 1


async def measure(address: str, asks: list[Ask], at_once: int) -> tuple[list[float], float]:
    """Times to first token (s), and requests per second."""
    waiting = list(asks)
    everything: list[Ask] = []

    async def caller(session: aiohttp.ClientSession) -> None:
        while waiting:
            ask = waiting.pop(0)
            await stream(session, address, ask)
            everything.append(ask)
            if ask.then:  # the next turn comes when others had theirs
                ask.then[0].then = ask.then[1:]
                waiting.append(ask.then[0])

    began = time.perf_counter()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        await asyncio.gather(*(caller(session) for _ in range(at_once)))
    took_s = time.perf_counter() - began
    return [ask.first_s for ask in everything if ask.first_s], len(everything) / took_s


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def process(*command: str, ready: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process, once a GET of `ready` answers 200."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        by = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(ready, timeout=2).read()
                break
            except OSError:
                if running.poll() is not None or time.monotonic() > by:
                    raise SystemExit(f"it did not start: {' '.join(command)[:200]}") from None
                time.sleep(0.1)
        yield running
    finally:
        running.send_signal(signal.SIGTERM if running.args[1] != "-c" else signal.SIGKILL)  # type: ignore[index]
        running.wait(30)


def replica(engine: str, model: str, port: int) -> contextlib.AbstractContextManager[object]:
    if engine == "llamacpp":
        return process(sys.executable, "-c", LLAMACPP, model, str(port), ready=f"http://127.0.0.1:{port}/health")
    return process(
        sys.executable, "-m", "penstock.cli", "serve", model, "--name", MODEL, "--http-port", str(port), "--no-grpc",
        "--threads", "1", "--options", "engine=llamacpp", "--options", "context_tokens=2048",
        ready=f"http://127.0.0.1:{port}/v2/health/ready",
    )  # fmt: skip


def router(folder: Path, policy: str, replicas: list[int], port: int) -> contextlib.AbstractContextManager[object]:
    state = folder / policy
    state.mkdir()
    arm = {
        "revision": 1, "weight": 1.0,
        "upstreams": [{"id": f"r{number}", "http": f"127.0.0.1:{one}"} for number, one in enumerate(replicas)],
    }  # fmt: skip
    requests = {"balance": policy, "timeout_s": 300.0, "idempotent": True, "retry_budget": 1.0}
    table = {"version": 1, "endpoints": [{"name": MODEL, "arms": [arm], "stable": 1, "requests": requests}]}
    (state / "routes.json").write_text(json.dumps(table))
    return process(
        sys.executable, "-m", "penstock.fleet.router", "--state", str(state), "--port", str(port),
        ready=f"http://127.0.0.1:{port}/v2/health/ready",
    )  # fmt: skip


def report(workload: str, first: dict[str, list[list[float]]], rates: dict[str, list[float]]) -> None:
    """Medians over the turns, with the lowest and the highest; and what `prefix` is of each of the others."""
    medians = {}
    for policy in POLICIES:
        p50 = [statistics.median(times) for times in first[policy]]
        p90 = [sorted(times)[int(len(times) * 0.9)] for times in first[policy]]
        medians[policy] = statistics.median(p50), statistics.median(p90), statistics.median(rates[policy])
        print(
            f"{workload:15} {policy:12} p50 {spread(p50, 1e3)} ms   p90 {spread(p90, 1e3)} ms   "
            f"{spread(rates[policy], 1, 2)} requests/s", flush=True,
        )  # fmt: skip
    for policy in POLICIES[:-1]:
        p50, p90, rate = (mine / other for mine, other in zip(medians["prefix"], medians[policy], strict=True))
        print(f"{'':15} prefix / {policy}: p50 {p50:.2f}, p90 {p90:.2f}, requests/s {rate:.2f}", flush=True)


def spread(values: list[float], unit: float, digits: int = 0) -> str:
    low, middle, high = (
        f"{value * unit:.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle:>6} ({low} to {high})"


async def compare(given: argparse.Namespace, routers: dict[str, str]) -> None:
    for name in given.workloads.split(","):
        first: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
        rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for turn in range(given.turns):
            for policy in random.sample(POLICIES, len(POLICIES)):  # what else the machine does falls on none of them
                dice = random.Random(f"{name} {turn}")  # sizes alike for all
                asks = WORKLOADS[name](dice)
                salt(asks, f"{policy} {turn} {random.random()}")
                times, rate = await measure(routers[policy], asks, given.at_once)
                first[policy].append(times)
                rates[policy].append(rate)
        report(name, first, rates)


def salt(asks: list[Ask], text: str) -> None:
    """Words of this turn's own at the beginning of every first message."""
    for ask in asks:
        for one in (ask, *ask.then):
            one.messages[0] = said(one.messages[0]["role"], f"{text} {one.messages[0]['content']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=3, help="callers")
    parser.add_argument("--engine", choices=("penstock", "llamacpp"), default="penstock")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(given.replicas)]
        for port in ports:
            stack.enter_context(replica(given.engine, str(Path(given.model).absolute()), port))
        routers = {}
        for policy in POLICIES:
            port = free_port()
            stack.enter_context(router(Path(name), policy, ports, port))
            routers[policy] = f"127.0.0.1:{port}"
        asyncio.run(compare(given, routers))


if __name__ == "__main__":
    main()
