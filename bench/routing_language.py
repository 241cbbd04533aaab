"""Balancing of language models: round robin, least in flight and prefix-aware, on time to first token.

    python bench/routing_language.py MODEL.gguf [--replicas 3] [--minutes 10] [--form open|closed] [--load 0.7]
        [--engine openvino|llamacpp|llama-server] [--workloads "conversations,agents"] [--seed final]

Each workload has an equal part of the minutes, and as many turns as fit into it, at least two.

Starts replicas of one model, each with one thread, and a router for each way of balancing in front of the same
replicas. Every workload (`routing_workloads`) is sent through each router, in an order that is drawn for each turn, so
that whatever else the machine does falls on all of them, and with words of its own each time, so that no turn finds in
the replicas' caches what another one left there.

`open`: requests come at times that are drawn once for each turn and are the same for all (Poisson), at `--load` of what
`least` carries when it is asked for as much as it can, which is measured first. A conversation's next turn comes
`THINKS_S` after the answer. This is how callers who do not wait for each other come, and times to the first token mean
what they say. `closed`: `--at-once` callers, each of which asks again once it is answered. A way of balancing that
answers sooner is then asked sooner: times to the first token and requests per second go against each other.

A ratio is that of the means over all requests; its interval is a bootstrap of the paired requests: turns are drawn, and
within them blocks of `BLOCK` requests that followed each other, for what one request waits the next one waits too.
Source of the blocks: Künsch, The jackknife and the bootstrap for general stationary observations, 1989.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
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
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from routing_workloads import WORKLOADS, Ask, said

POLICIES = ("round_robin", "least", "prefix")
MODEL = "chat"
THINKS_S = 0.5
BLOCK = 6
DRAWS = 4000
LEAST_TURNS = 2

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


async def stream(session: aiohttp.ClientSession, address: str, ask: Ask) -> None:
    """Asks, and notes when the first token came and how many did."""
    body = {
        "model": MODEL, "messages": ask.messages, "max_tokens": ask.output, "stream": True, "temperature": 0,
        "ignore_eos": True,
    }  # fmt: skip
    began = time.perf_counter()
    async with session.post(f"http://{address}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            choice = (json.loads(line[6:]).get("choices") or [{}])[0]
            wrote = bool(choice.get("delta", {}).get("content"))
            if wrote or choice.get("finish_reason"):  # a model may end at once
                ask.first_s = ask.first_s or time.perf_counter() - began
            ask.tokens += wrote
    ask.whole_s = time.perf_counter() - began


def every(asks: list[Ask]) -> list[Ask]:
    """In an order that is the same for all ways of balancing."""
    return [one for ask in asks for one in (ask, *ask.then)]


async def closed(address: str, asks: list[Ask], at_once: int) -> float:
    """Callers who wait for an answer before they ask again. Gives requests per second."""
    waiting = [(ask, *ask.then) for ask in asks]
    count = len(every(asks))

    async def caller(session: aiohttp.ClientSession) -> None:
        while waiting:
            ask, *then = waiting.pop(0)
            await stream(session, address, ask)
            if then:  # the next turn comes when others had theirs
                waiting.append(tuple(then))

    began = time.perf_counter()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        await asyncio.gather(*(caller(session) for _ in range(at_once)))
    return count / (time.perf_counter() - began)


async def opened(address: str, asks: list[Ask], at_s: list[float]) -> float:
    """Each comes at its time, whatever became of the others. Gives requests per second."""

    async def talk(session: aiohttp.ClientSession, ask: Ask, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await stream(session, address, ask)
        for one in ask.then:
            await asyncio.sleep(THINKS_S)
            await stream(session, address, one)

    began = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300), connector=connector) as session:
        await asyncio.gather(*(talk(session, ask, after_s) for ask, after_s in zip(asks, at_s, strict=True)))
    return len(every(asks)) / (time.perf_counter() - began)


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
    if engine == "llama-server":
        return process(sys.executable, "-c", LLAMACPP, model, str(port), ready=f"http://127.0.0.1:{port}/health")
    return process(
        sys.executable, "-m", "penstock.cli", "serve", model, "--name", MODEL, "--http-port", str(port), "--no-grpc",
        "--threads", "1", "--options", f"engine={engine}", "--options", "context_tokens=2048",
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


# --- figures ---------------------------------------------------------------------------------------------------------


def ratio(mine: list[list[float]], other: list[list[float]], dice: random.Random) -> tuple[float, float, float]:
    """Of the means, with the 2.5th and the 97.5th percentile of its bootstrap. `mine[turn][place]` and
    `other[turn][place]` are of the same request."""
    found = []
    for _ in range(DRAWS):
        above = below = 0.0
        for _ in mine:
            turn = dice.randrange(len(mine))
            size = len(mine[turn])
            for _ in range(0, size, BLOCK):
                start = dice.randrange(size)
                for place in range(start, start + BLOCK):  # the turn is a ring, so that all places count alike
                    above += mine[turn][place % size]
                    below += other[turn][place % size]
        found.append(above / below)
    found.sort()
    whole = sum(map(sum, mine)) / sum(map(sum, other))
    return whole, found[int(DRAWS * 0.025)], found[int(DRAWS * 0.975)]


class Turns:
    """What was measured of one workload: times by way of balancing, turn and request."""

    def __init__(self) -> None:
        self.first: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
        self.whole: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
        self.rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}

    def add(self, policy: str, asks: list[Ask], rate: float) -> None:
        self.first[policy].append([one.first_s for one in every(asks)])
        self.whole[policy].append([one.whole_s for one in every(asks)])
        self.rates[policy].append(rate)

    def report(self, workload: str, dice: random.Random) -> str:
        """Prints it; gives the row of a table."""
        cells = []
        for policy in POLICIES:
            times = sorted(one for turn in self.first[policy] for one in turn)
            mean, p50, p90 = statistics.mean(times), statistics.median(times), times[int(len(times) * 0.9)]
            whole = statistics.mean(one for turn in self.whole[policy] for one in turn)
            print(
                f"{workload:17} {policy:12} first token: mean {mean:6.3f} s, p50 {p50:6.3f} s, p90 {p90:6.3f} s; "
                f"whole {whole:6.3f} s; {statistics.mean(self.rates[policy]):.2f} requests/s", flush=True,
            )  # fmt: skip
            cells.append(f"{mean:.2f}, {p90:.2f}")
        for policy in POLICIES[:-1]:
            text = "{:.2f} ({:.2f} to {:.2f})".format(*ratio(self.first["prefix"], self.first[policy], dice))
            whole_text = "{:.2f} ({:.2f} to {:.2f})".format(*ratio(self.whole["prefix"], self.whole[policy], dice))
            print(f"{'':17} prefix / {policy}: first token {text}, whole answer {whole_text}", flush=True)
            cells.append(text)
        cells.append(f"{len(self.rates['prefix'])}, {len(self.first['prefix'][0])}")
        return f"| {workload} | {' | '.join(cells)} |"


async def compare(given: argparse.Namespace, routers: dict[str, str]) -> None:
    table = [
        "| First token, s | round robin: mean, p90 | least: mean, p90 | prefix: mean, p90 | prefix / round robin | "
        "prefix / least | turns, requests in each |",
        "|---|---|---|---|---|---|---|",
    ]
    names = given.workloads.split(",")
    for name in names:
        began, rate = time.monotonic(), 0.0
        if given.form == "open":
            asks = salted(name, f"{given.seed} capacity", "least")
            carried = await closed(routers["least"], asks, 2 * given.replicas)
            rate = given.load * carried * len(asks) / len(every(asks))
            print(f"{name}: least carries {carried:.2f} requests/s", flush=True)
        turns = Turns()
        for turn in itertools.count():
            spent_s = time.monotonic() - began
            if turn >= LEAST_TURNS and spent_s * (turn + 1) / turn > given.minutes * 60 / len(names):
                break
            seed = f"{given.seed} {turn}"
            dice, at = random.Random(f"times {name} {seed}"), 0.0
            at_s = [at := at + dice.expovariate(rate) for _ in salted(name, seed, "")] if rate else []
            for policy in random.sample(POLICIES, len(POLICIES)):
                asks = salted(name, seed, policy)
                if given.form == "open":
                    carried = await opened(routers[policy], asks, at_s)
                else:
                    carried = await closed(routers[policy], asks, given.at_once)
                turns.add(policy, asks, carried)
        table.append(turns.report(name, random.Random(0)))
    print("", *table, sep="\n", flush=True)


def salted(name: str, seed: str, policy: str) -> list[Ask]:
    """A workload, alike for all ways of balancing but for words of its own at the beginning of every first message."""
    asks = WORKLOADS[name](random.Random(f"{name} {seed}"))
    salt = f"{policy} {random.random()}"
    for one in every(asks):
        one.messages[0] = said(one.messages[0]["role"], f"{salt} {one.messages[0]['content']}")
    return asks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--form", choices=("open", "closed"), default="open")
    parser.add_argument("--load", type=float, default=0.7, help="open: of what least carries")
    parser.add_argument("--at-once", type=int, default=3, help="closed: callers")
    parser.add_argument("--engine", choices=("openvino", "llamacpp", "llama-server"), default="openvino")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--seed", default="tuning", help="what is asked, and when")
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
