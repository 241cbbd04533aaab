"""What our own path costs: processor time a token from the engine in the worker to the event on the wire, and the time
that it adds before the first token.

    python bench/llm/overhead.py [--rounds 3] [--seconds 3] [--streams 1,16,64]

The engine is `echo`, which has no weights. Every 10 ms each of its sequences has a token, so that every token comes
alone: tokens that come faster than they are sent on are sent together, and cost less. Its own work (a timer and a
token) is measured by running it alone, and is in the figure of the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from llm.client import Target, ask_all
from llm.serving import cpu_s, penstock, tree

DELAY_S = 0.01
_SAID = "the quick brown fox jumps over the lazy dog; "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--streams", default="1,16,64")
    given = parser.parse_args()
    measure(given.rounds, given.seconds, [int(count) for count in given.streams.split(",")])


def measure(rounds: int, seconds: float, counts: list[int]) -> dict[str, object]:
    """µs of processor time a token by number of streams, and what is added before the first token; prints tables."""
    with tempfile.TemporaryDirectory() as folder:
        paced, quick = Path(folder, "paced.llmecho"), Path(folder, "quick.llmecho")
        paced.touch()
        quick.touch()
        models = {
            "paced": (paced, {"delay_s": DELAY_S, "max_running": max(counts)}),
            "quick": (quick, {"max_running": max(counts)}),
        }
        with penstock(models, 1) as (address, pid):
            costs = _costs(address, pid, rounds, seconds, counts)
            first = _first(address)
    print(f"\nprocessor time a token, µs: median of {rounds} rounds [least to most]; the engine has one every 10 ms")
    print(f"{'streams':>8} {'tokens/s':>9} {'server':>16} {'front':>16} {'worker':>16} {'engine alone':>16}")
    for count, row in costs.items():
        cells = "".join(f"{_range(row[name]):>17}" for name in ("server", "front", "worker", "alone"))
        print(f"{count:>8} {statistics.median(row['rate']):>9,.0f}{cells}")
    print("\nbefore the first token, without an engine, ms: median (99th percentile) of 300")
    for name, values in first.items():
        print(
            f"  {name:42} {statistics.median(values) * 1e3:6.2f} ({sorted(values)[-len(values) // 100 - 1] * 1e3:.2f})"
        )
    return {"cost_us": costs, "first_s": first}


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} [{min(values):.0f} to {max(values):.0f}]"


def _costs(address: str, pid: int, rounds: int, seconds: float, counts: list[int]) -> dict[int, dict[str, list[float]]]:
    target = Target(address, "paced")
    tokens = int(seconds / DELAY_S)
    ask_all(target, [_body(20)] * 4, 4)
    found: dict[int, dict[str, list[float]]] = {}
    worker = _worker_of(address, pid)
    idle = _idle(pid), _idle(worker)
    for _ in range(rounds):
        for count in counts:
            row = found.setdefault(count, {name: [] for name in ("rate", "server", "front", "worker", "alone")})
            before = cpu_s([pid]), cpu_s([worker])
            wall_s, answers = ask_all(target, [_body(tokens)] * count, count)
            front = cpu_s([pid]) - before[0] - idle[0] * wall_s
            back = cpu_s([worker]) - before[1] - idle[1] * wall_s
            total = sum(answer.tokens for answer in answers)
            if total != tokens * count:
                raise SystemExit(f"{total} tokens came of {tokens * count}")
            row["rate"].append(total / wall_s)
            row["front"].append(front / total * 1e6)
            row["worker"].append(back / total * 1e6)
            row["server"].append((front + back) / total * 1e6)
            row["alone"].append(_alone(count, tokens))
    return found


def _idle(pid: int, seconds: float = 1.0) -> float:
    """Processor seconds a second that a process takes when nobody asks it: pulses and the like."""
    before = cpu_s([pid])
    time.sleep(seconds)
    return (cpu_s([pid]) - before) / seconds


def _worker_of(address: str, pid: int) -> int:
    """The worker that holds `paced`: the one whose time goes up when it is asked."""
    workers = [each for each in tree(pid) if each != pid]
    before = {each: cpu_s([each]) for each in workers}
    ask_all(Target(address, "paced"), [_body(100)] * 16, 16)
    return max(workers, key=lambda each: cpu_s([each]) - before[each])


def _body(tokens: int, stream: bool = True) -> dict[str, object]:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {
        "messages": [{"role": "user", "content": f"say:{_SAID}"}], "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, **options,
    }  # fmt: skip


def _alone(count: int, tokens: int) -> float:
    """µs of processor time a token of the engine itself, in this process."""
    from penstock.core.language import Generation, Sampling
    from penstock.language.files import look
    from penstock.runtime.engines import EngineContext, echo

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "alone.llmecho")
        path.touch()
        context = EngineContext("alone", "cpu", 1.0, 1, max_running=count, options={"delay_s": DELAY_S})
        engine = echo.plug.load(look(path), context)

    async def one() -> None:
        asked = Generation("x", tuple(_SAID.encode()), tokens, Sampling(temperature=0, ignore_eos=True))
        async for _ in engine.generate(asked):
            pass

    async def every() -> None:
        await asyncio.gather(*(one() for _ in range(count)))

    before = time.process_time()
    asyncio.run(every())
    return (time.process_time() - before) / (count * tokens) * 1e6


def _first(address: str) -> dict[str, list[float]]:
    """Seconds of requests that end after their first token, and of one that reaches no model."""
    found: dict[str, list[float]] = {}
    target = Target(address, "quick")
    found["chat, streamed"] = _first_of(target, _body(1), "/v1/chat/completions")
    found["chat, whole"] = _first_of(target, _body(1, False), "/v1/chat/completions")
    texts = _body(1, False)
    del texts["messages"]
    found["token ids for a prompt, whole"] = _first_of(
        target, {**texts, "prompt": list(_SAID.encode())}, "/v1/completions"
    )
    return found


def _first_of(target: Target, body: dict[str, object], path: str) -> list[float]:
    ask_all(target, [body] * 20, 1, path)
    _, answers = ask_all(target, [body] * 300, 1, path)
    return [answer.first_s for answer in answers]


if __name__ == "__main__":
    main()
