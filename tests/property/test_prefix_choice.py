"""Which replica gets a prompt: never one that is much behind, and the loads are what is really on its way."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.fleet.router.lanes import Lane, Service, Upstream
from penstock.fleet.router.prefix_choice import (
    LEAST_SHARE,
    MOST_OVER_MEAN,
    MOST_WAIT,
    TOKENS_PER_BLOCK,
    begun,
    choose,
    enter,
    leave,
    load,
)
from penstock.fleet.router.prefixes import BLOCK_BYTES
from penstock.fleet.router.prompts import Prompt, block_keys, read_prompt
from penstock.fleet.routes import Endpoint
from penstock.fleet.routes import Upstream as Address


def upstreams(count: int) -> list[Upstream]:
    lane = Lane(Service(Endpoint("chat", (), 1), 0.0), 1, 0.0)
    return [Upstream(Address(f"r{number}", f"h:{number}"), lane) for number in range(count)]


def prompt(path: str, output: float = 100.0) -> Prompt:
    text = b"".join(letter.encode() * BLOCK_BYTES for letter in path)
    return Prompt(block_keys(text), text[:16] or b"-", len(text) / 4, output)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.text("ab", max_size=20), st.sampled_from(["begin", "end", "retry"]), st.integers(0, 50)), max_size=80),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_guard_holds_and_no_load_is_left_behind(count: int, steps: list[tuple[str, str, int]]) -> None:
    replicas, running, now = upstreams(count), [], 0.0
    for path, what, number in steps:
        now += 1.0
        asked = prompt(path)
        loads = {one.id: load(one) for one in replicas}
        saves = {one.id: one.prefixes.match(asked.keys, now) * TOKENS_PER_BLOCK for one in replicas}
        chosen = choose(replicas, asked, now)
        assert chosen is not None
        least, saved = min(loads.values()), saves[chosen.id]
        fewest = min(one.in_flight for one in replicas)
        if chosen.in_flight > fewest:  # somebody waits for a match, which has to be worth it
            assert saved == max(saves.values()) and saved >= LEAST_SHARE * asked.tokens
            bound = max(least + saved, min(MOST_OVER_MEAN * sum(loads.values()) / count, least + MOST_WAIT * saved))
            assert loads[chosen.id] <= bound + 1e-6
        enter(chosen, asked, now)
        chosen.in_flight += 1
        running.append((chosen, asked))
        if what == "retry":  # lost with its replica: it goes to another one
            other = replicas[number % count]
            enter(other, asked, now)
            chosen.in_flight -= 1
            other.in_flight += 1
            running[-1] = (other, asked)
        if what == "end":
            upstream, ended = running.pop(number % len(running))
            begun(ended)
            leave(ended)
            leave(ended)  # twice does no harm
            upstream.in_flight -= 1
    for upstream, left in running:
        leave(left)
        upstream.in_flight -= 1
    assert all(abs(load(one)) < 1e-6 for one in replicas)


def test_prompts_with_nothing_in_common_are_spread_as_by_least_in_flight() -> None:
    replicas, dice = upstreams(4), random.Random(1)
    for number in range(400):
        asked = Prompt((number,), b"%d" % number, dice.choice([10, 100, 4000]), 100.0)
        chosen = choose(replicas, asked, 0.0)
        assert chosen is not None
        enter(chosen, asked, 0.0)
        chosen.in_flight += 1
        assert max(one.in_flight for one in replicas) - min(one.in_flight for one in replicas) <= 1


def test_a_little_in_common_is_no_reason_to_wait() -> None:
    replicas = upstreams(3)
    for number in range(26):
        asked = prompt("s" + "".join(chr(97 + (number * 7 + place) % 26) for place in range(8)))
        chosen = choose(replicas, asked, 0.0)
        assert chosen is not None
        enter(chosen, asked, 0.0)
        chosen.in_flight += 1
        assert max(one.in_flight for one in replicas) - min(one.in_flight for one in replicas) <= 1


def test_idle_routers_agree_on_who_has_a_beginning_that_nobody_has() -> None:
    """Each with its own upstreams, in another order."""
    homes = set()
    for number in range(60):
        asked = prompt(chr(97 + number % 26) * 3 + chr(97 + number % 7))
        asked.root = b"beginning %d" % number
        one, other = upstreams(5), upstreams(5)[::-1]
        first, second = choose(one, asked, 0.0), choose(other, asked, 0.0)
        assert first is not None and second is not None
        assert first.id == second.id
        homes.add(first.id)
    assert len(homes) == 5


@given(st.lists(st.text(max_size=600), min_size=1, max_size=6), st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_the_next_turn_of_a_conversation_begins_with_the_turn_before(turns: list[str], system: str) -> None:
    messages: list[object] = [{"role": "system", "content": system}]
    before: tuple[int, ...] = ()
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        body = {"model": "m", "messages": messages, "temperature": 0.5}
        found = read_prompt("/v1/chat/completions", body, 1000).keys
        again = read_prompt("/v1/chat/completions", {"messages": [dict(reversed(one.items())) for one in messages], "model": "m"}, 1)  # type: ignore[attr-defined]  # fmt: skip
        assert found == again.keys, "the order of keys makes no difference"
        assert found[: len(before) - 1] == before[: len(before) - 1]  # the last block may hold the list's end
        before = found
        messages.append({"role": "assistant", "content": turn[::-1]})
