"""What is asked when ways of balancing language models are compared: conversations, prompts that callers share, prompts
that share nothing, and all sizes mixed.

A workload is drawn from dice: the same dice, the same requests. Sizes are in words, of about 1.1 tokens each.
`agents` was written before anything was tuned, and was not looked at while that was done.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

WORDS = (
    "river", "mountain", "letter", "window", "garden", "machine", "winter", "paper", "silver", "bridge", "candle",
    "forest", "market", "engine", "island", "morning", "pocket", "shadow", "travel", "yellow", "number", "copper",
)  # fmt: skip

Message = dict[str, str]


@dataclass
class Ask:
    """One request, and what became of it. `then` are asked after its answer, one after the other."""

    messages: list[Message]
    output: int
    then: list[Ask] = field(default_factory=list)
    first_s: float = 0.0
    whole_s: float = 0.0
    tokens: int = 0


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(count))


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def conversations(dice: random.Random) -> list[Ask]:
    """Six documents of 100 to 300 words, and two to five questions about each, one after the other."""
    found = []
    for _ in range(6):
        history = [said("user", f"{words(dice, dice.randrange(100, 300))}. What is this?")]
        turns = [Ask([*history], dice.randrange(8, 25))]
        for _ in range(dice.randrange(1, 5)):
            history += [said("assistant", words(dice, 12)), said("user", f"And what of {words(dice, 8)}?")]
            turns.append(Ask([*history], dice.randrange(8, 25)))
        turns[0].then = turns[1:]
        found.append(turns[0])
    return found


def shared_prompt(dice: random.Random) -> list[Ask]:
    """One system prompt of 800 words that all share, and 24 short questions."""
    prompt = words(dice, 800)
    return [
        Ask([said("system", prompt), said("user", words(dice, dice.randrange(5, 20)))], dice.randrange(16, 33))
        for _ in range(24)
    ]  # fmt: skip


def tenants(dice: random.Random) -> list[Ask]:
    """Five system prompts of 700 to 1,000 words, of which some are asked below more often, and 24 short questions."""
    prompts = [words(dice, dice.randrange(700, 1000)) for _ in range(5)]
    found = []
    for _ in range(24):
        prompt = dice.choices(prompts, (5, 4, 3, 2, 1))[0]
        question = words(dice, dice.randrange(5, 20))
        found.append(Ask([said("system", prompt), said("user", question)], dice.randrange(16, 33)))
    return found


def nothing_shared(dice: random.Random) -> list[Ask]:
    return [Ask([said("user", words(dice, dice.randrange(40, 120)))], dice.randrange(8, 33)) for _ in range(24)]


def skewed(dice: random.Random) -> list[Ask]:
    """Most are short, a few are long, in what is read and in what is written."""
    return [
        Ask([said("user", words(dice, min(500, int(dice.lognormvariate(3.0, 1.2)))))], 48 if dice.random() < 0.2 else 6)
        for _ in range(30)
    ]  # fmt: skip


def agents(dice: random.Random) -> list[Ask]:
    """Three sets of tools, tasks below them whose calls' results come back, and lone questions in between."""
    tools = [words(dice, dice.randrange(500, 800)) for _ in range(3)]
    found = []
    for _ in range(9):
        history = [said("system", dice.choices(tools, (3, 2, 1))[0]), said("user", words(dice, dice.randrange(20, 60)))]
        turns = [Ask([*history], dice.randrange(8, 32))]
        for _ in range(dice.randrange(0, 3)):
            history += [said("assistant", words(dice, 10)), said("user", words(dice, dice.randrange(30, 120)))]
            turns.append(Ask([*history], dice.randrange(8, 32)))
        turns[0].then = turns[1:]
        found.append(turns[0])
    found += [Ask([said("user", words(dice, dice.randrange(20, 100)))], dice.randrange(8, 32)) for _ in range(6)]
    dice.shuffle(found)
    return found


WORKLOADS: dict[str, Callable[[random.Random], list[Ask]]] = {
    "conversations": conversations, "shared prompt": shared_prompt, "tenants' prompts": tenants,
    "nothing shared": nothing_shared, "skewed sizes": skewed, "agents": agents,
}  # fmt: skip
