"""Replicas of a language model in virtual time, behind the router's own balancer: what a way of balancing gives, with no
machine and no chance in it but the seed's.

A replica works in steps, as engines with continuous batching do: each step reads up to `step_tokens` of the prompts that
wait, in the order they came, and writes one token of every answer that has begun. What a step takes is the sum of both.
What was read lies in a cache of blocks, the least recently used are given up first. Callers wait for an answer before
they ask again, or come at times of their own (`Run`'s `per_s`).
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.lanes import Upstream
from penstock.fleet.router.prefixes import BLOCK_BYTES
from penstock.fleet.router.prompts import BYTES_PER_TOKEN, Prompt, read_prompt
from penstock.fleet.router.table import CompiledTable
from penstock.fleet.router.talk import Talk
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.routes import Upstream as Address
from penstock.fleet.spec import Requests


@dataclass(frozen=True)
class Speed:
    """Of an engine on one thread."""

    read_s: float  # a prompt token
    write_s: float  # a token of one answer
    with_others: float  # of that, for each further answer in the same step
    step_tokens: int  # prompt tokens that are read in one


# A model of 135 million weights in 4 bits, measured once and roughly on a busy machine.
OPENVINO = Speed(1 / 480, 0.033, 0.15, 256)
LLAMACPP = Speed(1 / 180, 0.010, 0.5, 64)

THINKS_S = 0.5  # between an answer and the next turn, of callers who come at times of their own
NEVER_CACHED = 8.0  # tokens of a prompt that are always read: its last ones
CACHE_BLOCKS = 400  # 25,600 tokens

Message = dict[str, str]


@dataclass
class Ask:
    """One request. `then` are asked after its answer, by whoever is free."""

    messages: list[Message]
    output: int
    limit: int | None = None  # `max_tokens`, where it says more than what is written
    then: list[Ask] = field(default_factory=list)


class Running:
    """One request at a replica."""

    def __init__(self, prompt: Prompt, ask: Ask, run: Run, ended: Callable[[], None]) -> None:
        self.prompt, self.ask, self.began, self.ended = prompt, ask, run.now, ended
        self.talk = Talk(prompt, True, lambda: run.now)
        if prompt.upstream is not None:
            self.talk.answers(200, prompt.upstream)
        self.unread = prompt.tokens
        self.unwritten = ask.output
        self.first_s = 0.0


class SimulatedReplica:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._reading: deque[Running] = deque()
        self._writing: list[Running] = []
        self._cache: dict[int, None] = {}
        self._works = False
        self.read = 0.0

    def take(self, request: Running) -> None:
        cached = list(itertools.takewhile(self._cache.__contains__, request.prompt.keys))
        request.unread = max(NEVER_CACHED, request.prompt.tokens - len(cached) * BLOCK_BYTES / BYTES_PER_TOKEN)
        self.read += request.unread
        self._reading.append(request)
        if not self._works:
            self._works = True
            self._step()

    def _step(self) -> None:
        """Begins one; its end comes as a timer."""
        speed = self._run.speed
        room, took_s = float(speed.step_tokens), 0.0
        ready: list[Running] = []
        while self._reading and room > 0:
            request = self._reading[0]
            part = min(room, request.unread)
            request.unread -= part
            room -= part
            took_s += part * speed.read_s
            if request.unread <= 0:
                ready.append(self._reading.popleft())
        if self._writing:
            took_s += speed.write_s * (1 + speed.with_others * (len(self._writing) - 1))
        writing = tuple(self._writing)
        self._run.later(took_s, lambda: self._stepped(ready, writing))

    def _stepped(self, ready: list[Running], writing: tuple[Running, ...]) -> None:
        for request in writing:
            self._wrote(request)
        for request in ready:
            self._keep(request.prompt)
            request.first_s = self._run.now - request.began
            self._writing.append(request)
            self._wrote(request)
        if self._reading or self._writing:
            self._step()
        else:
            self._works = False

    def _wrote(self, request: Running) -> None:
        request.talk.pieces((b"data: x\n\n",))
        request.unwritten -= 1
        if request.unwritten <= 0:
            self._writing.remove(request)
            request.talk.over()
            request.ended()

    def _keep(self, prompt: Prompt) -> None:
        for key in reversed(prompt.keys):
            self._cache.pop(key, None)
            self._cache[key] = None
        while len(self._cache) > self._run.cache_blocks:
            del self._cache[next(iter(self._cache))]


@dataclass(frozen=True)
class Figures:
    mean_s: float
    p50_s: float
    p90_s: float
    whole_s: float  # mean, to the last token
    rate: float  # requests per second
    read: float  # prompt tokens, all replicas together


class Run:
    """One workload, sent through one way of balancing."""

    def __init__(
        self, balance: str, replicas: int, asks: list[Ask], callers: int, speed: Speed, per_s: float | None,
        cache_blocks: int,
    ) -> None:  # fmt: skip
        """`per_s`: of requests that no answer was waited for, which come at times drawn from the text of the first."""
        self.now = 0.0
        self.speed = speed
        self.cache_blocks = cache_blocks
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._balancer = Balancer(lambda: self.now, self.later)
        arm = Arm(1, 1.0, tuple(Address(f"r{number}", f"h:{number}") for number in range(replicas)))
        endpoint = Endpoint("chat", (arm,), 1, requests=Requests(balance=balance))
        self._balancer.follow(CompiledTable(Table(1, (endpoint,))))
        self._service = self._balancer.services["chat"]
        self._replicas = {f"r{number}": SimulatedReplica(self) for number in range(replicas)}
        self._waiting = deque(asks if per_s is None else ())
        self._idle = callers if per_s is None else len(asks) * 100
        self._thinks_s = 0.0 if per_s is None else THINKS_S
        dice, at_s = random.Random(asks[0].messages[0]["content"]), 0.0
        for ask in asks if per_s is not None else ():
            at_s += dice.expovariate(per_s or 1.0)
            self._come(ask, at_s)
        self._first: list[float] = []
        self._whole: list[float] = []

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay_s, next(self._count), call))

    def _come(self, ask: Ask, after_s: float) -> None:
        def comes() -> None:
            self._waiting.append(ask)
            self._ask()

        self.later(after_s, comes)

    def figures(self) -> Figures:
        """Runs it to its end."""
        self._ask()
        while self._timers:
            self.now, _, call = heapq.heappop(self._timers)
            call()
        lane = self._service.lanes[0]
        assert not any(one.in_flight or one.load for one in lane.upstreams), "the loads are what is on its way"
        first = sorted(self._first)
        return Figures(
            statistics.mean(first), statistics.median(first), first[int(len(first) * 0.9)],
            statistics.mean(self._whole), len(first) / self.now, sum(one.read for one in self._replicas.values()),
        )  # fmt: skip

    def _ask(self) -> None:
        while self._idle and self._waiting:
            self._idle -= 1
            ask = self._waiting.popleft()
            limit = ask.output if ask.limit is None else ask.limit
            document = {"model": "chat", "messages": ask.messages, "max_tokens": limit}
            prompt = read_prompt("/v1/chat/completions", document, 1000)
            upstream = self._balancer.acquire(self._service, None, self.now, prompt)
            if upstream is None:
                raise AssertionError("no limit was set")
            self._send(upstream, ask, prompt)

    def _send(self, upstream: Upstream, ask: Ask, prompt: Prompt) -> None:
        began = self.now

        def ended() -> None:
            self._first.append(request.first_s)
            self._whole.append(self.now - began)
            self._balancer.release(upstream, self.now)
            self._idle += 1
            if ask.then:
                ask.then[0].then = ask.then[1:]
                self._come(ask.then[0], self._thinks_s)
            self.later(0.0, self._ask)

        request = Running(prompt, ask, self, ended)
        self._replicas[upstream.id].take(request)


def run(
    balance: str, asks: list[Ask], *, seed: int, replicas: int = 3, callers: int = 3, speed: Speed = OPENVINO,
    per_s: float | None = None, cache_blocks: int = CACHE_BLOCKS,
) -> Figures:  # fmt: skip
    """`balance` is one of `requests.balance`. The seed decides what is drawn at random on the way."""
    state = random.getstate()
    random.seed(seed)
    try:
        return Run(balance, replicas, asks, callers, speed, per_s, cache_blocks).figures()
    finally:
        random.setstate(state)


# --- workloads -------------------------------------------------------------------------------------------------------


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def words(dice: random.Random, count: int) -> str:
    return " ".join(f"{dice.randrange(1 << 16):04x}" for _ in range(count))


def conversations(dice: random.Random) -> list[Ask]:
    """Fourteen documents of 250 to 1,250 tokens, and two to six questions about each, one after the other."""
    found = []
    for _ in range(14):
        history = [said("user", words(dice, dice.randrange(200, 1000)))]
        turns = [Ask([*history], dice.randrange(4, 12))]
        for _ in range(dice.randrange(1, 6)):
            history += [said("assistant", words(dice, 12)), said("user", words(dice, 20))]
            turns.append(Ask([*history], dice.randrange(4, 12)))
        turns[0].then = turns[1:]
        found.append(turns[0])
    return found


def shared_prompts(dice: random.Random) -> list[Ask]:
    """Twelve system prompts of 250 to 1,250 tokens, and 60 short questions, each below one of them."""
    prompts = [words(dice, dice.randrange(200, 1000)) for _ in range(12)]
    return [
        Ask([said("system", dice.choice(prompts)), said("user", words(dice, 10))], dice.randrange(4, 12))
        for _ in range(60)
    ]  # fmt: skip


def nothing_shared(dice: random.Random) -> list[Ask]:
    return [Ask([said("user", words(dice, 240))], 8) for _ in range(60)]


def little_shared(dice: random.Random) -> list[Ask]:
    """All begin with the same 80 tokens, which is little of each."""
    beginning = words(dice, 64)
    return [Ask([said("system", beginning), said("user", words(dice, 240))], 8) for _ in range(60)]


def skewed(dice: random.Random) -> list[Ask]:
    """Most are short, a few are long, in what is read and in what is written; callers ask for more than comes."""
    return [
        Ask(
            [said("user", words(dice, min(1000, int(dice.lognormvariate(4.0, 1.2)))))],
            dice.choice((4, 4, 8, 8, 60)), dice.choice((None, 256)),
        )
        for _ in range(200)
    ]  # fmt: skip


def long_answers(dice: random.Random) -> list[Ask]:
    """One system prompt of 1,000 tokens that all share, and answers of 100 to 300; callers ask for no limit."""
    prompt = words(dice, 800)
    return [
        Ask([said("system", prompt), said("user", words(dice, dice.randrange(5, 30)))], dice.randrange(100, 300), 1024)
        for _ in range(60)
    ]  # fmt: skip


def agents(dice: random.Random) -> list[Ask]:
    """Six sets of tools, tasks below them whose calls' results come back, and lone questions in between. Written before
    anything was tuned, and not looked at while that was done."""
    tools = [words(dice, dice.randrange(400, 1200)) for _ in range(6)]
    found = []
    for _ in range(30):
        history = [
            said("system", dice.choices(tools, (6, 5, 4, 3, 2, 1))[0]), said("user", words(dice, dice.randrange(20, 60)))
        ]  # fmt: skip
        turns = [Ask([*history], dice.randrange(8, 64), 256)]
        for _ in range(dice.randrange(0, 4)):
            history += [said("assistant", words(dice, 10)), said("user", words(dice, dice.randrange(30, 200)))]
            turns.append(Ask([*history], dice.randrange(8, 64), 256))
        turns[0].then = turns[1:]
        found.append(turns[0])
    found += [Ask([said("user", words(dice, dice.randrange(20, 200)))], dice.randrange(8, 64)) for _ in range(20)]
    dice.shuffle(found)
    return found
