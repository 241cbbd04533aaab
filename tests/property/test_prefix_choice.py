"""Which replica gets a prompt: none is waited for longer than it saves, and the loads are what is really on its way."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.fleet.router.gain import Gain
from penstock.fleet.router.lanes import Lane, Service, Upstream
from penstock.fleet.router.prefix_choice import (
    REQUEST_COST,
    SHARED,
    TOKENS_PER_BLOCK,
    begun,
    choose,
    enter,
    leave,
    load,
)
from penstock.fleet.router.prefixes import BLOCK_BYTES
from penstock.fleet.router.prompts import WRITTEN_COST, Prompt, block_keys, read_prompt
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
def test_nobody_waits_for_more_than_a_match_saves_and_no_load_is_left_behind(
    count: int, steps: list[tuple[str, str, int]]
) -> None:
    replicas, running, now = upstreams(count), [], 0.0
    for path, what, number in steps:
        now += 1.0
        asked = prompt(path)
        chosen = choose(replicas, asked, now)
        assert chosen is not None
        unread = {
            one.id: max(0.0, asked.tokens - one.prefixes.match(asked.keys, now) * TOKENS_PER_BLOCK) for one in replicas
        }  # fmt: skip
        for other in replicas:
            waits = load(chosen) - load(other)
            saves = unread[other.id] * (1 + SHARED * other.in_flight) - unread[chosen.id] * (
                1 + SHARED * chosen.in_flight
            )
            assert waits <= saves + 1e-6
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


def test_prompts_with_nothing_in_common_are_spread_by_what_is_to_be_read() -> None:
    """No replica is ahead of another one by more than the longest prompt, and what that costs who is there."""
    replicas, dice = upstreams(4), random.Random(1)
    for number in range(400):
        asked = Prompt((number,), b"%d" % number, dice.choice([10, 100, 4000]), 100.0)
        chosen = choose(replicas, asked, 0.0)
        assert chosen is not None
        enter(chosen, asked, 0.0)
        chosen.in_flight += 1
        loads = [load(one) for one in replicas]
        most = max(one.in_flight for one in replicas)
        assert max(loads) - min(loads) <= 4000 * (1 + SHARED * most) + REQUEST_COST + 64 * WRITTEN_COST


def test_alike_prompts_with_little_in_common_are_spread_evenly() -> None:
    replicas = upstreams(3)
    for number in range(26):
        asked = prompt("s" + "".join(chr(97 + (number * 7 + place) % 26) for place in range(8)))
        chosen = choose(replicas, asked, 0.0)
        assert chosen is not None
        enter(chosen, asked, 0.0)
        chosen.in_flight += 1
        assert max(one.in_flight for one in replicas) - min(one.in_flight for one in replicas) <= 1


def test_where_a_match_gives_nothing_it_counts_for_nothing() -> None:
    """Idle replicas that take as long for what they should know as for what is new."""
    replicas = upstreams(3)
    warm = prompt("abcd")
    enter(replicas[2], warm, 0.0)
    leave(warm)
    gain = replicas[0].lane.gain
    for _ in range(8):
        assert choose(replicas, prompt("abcdx"), 1.0) is replicas[2]
        gain.observe(1000.0, 0.0, 2.0)
        gain.observe(1000.0, 0.9, 2.0)
    assert gain.worth == 0.0
    homes = set()
    for letter in "efghijklmnop":
        asked = prompt("abcd" + letter * 2)
        asked.root = letter.encode()
        chosen = choose(replicas, asked, 1.0)
        assert chosen is not None
        homes.add(chosen.id)
    assert len(homes) == 3
    for _ in range(40):  # another engine, or a cache that was switched on
        gain.observe(1000.0, 0.9, 0.2)
    assert gain.worth > 0.9
    assert choose(replicas, prompt("abcdx"), 1.0) is replicas[2]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 1e3)), max_size=60))
@settings(deadline=None)
def test_the_worth_of_a_match_is_a_share_whatever_was_seen(seen: list[tuple[float, float, float]]) -> None:
    gain = Gain()
    for tokens, share, took_s in seen:
        gain.observe(tokens, share, took_s)
        assert 0.0 <= gain.worth <= 1.0


LENGTHS = st.tuples(st.floats(100, 8000), st.floats(1.6, 5.0))  # the shortest, and how many times it the longest is


@given(
    st.floats(0.0, 0.2), st.floats(2e-5, 2e-3), st.sampled_from([0.0, 0.3, 0.6, 1.0]), LENGTHS, LENGTHS,
    st.integers(0, 1 << 30),
)  # fmt: skip
@example(0.06, 1e-4, 1.0, (2600.0, 2.0), (260.0, 2.0), 1)  # long ones are new, short ones come again
@example(0.06, 1e-4, 0.0, (200.0, 2.0), (2600.0, 2.0), 1)  # conversations that grow, and no cache
@settings(max_examples=40, deadline=None)
def test_lengths_are_not_taken_for_a_cache(
    each_s: float, token_s: float, worth: float, new: tuple[float, float], known: tuple[float, float], seed: int
) -> None:
    gain, draw = Gain(), random.Random(seed)
    for number in range(80):
        least, times = known if number % 2 else new
        tokens = draw.uniform(least, least * times)
        share = draw.uniform(0.5, 0.95) if number % 2 else 0.0
        took_s = each_s + token_s * tokens * (1.0 - share * worth)
        gain.observe(tokens, share, took_s * draw.uniform(0.99, 1.01))
    # Where lengths make next to no difference to what every request takes, nothing is seen.
    if token_s * min(new[0] * (new[1] - 1), known[0] * (known[1] - 1)) > each_s / 4:
        assert abs(gain.worth - worth) < 0.2


@given(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 1 << 30))
@settings(max_examples=40, deadline=None)
def test_noise_and_waits_for_others_are_not_taken_for_a_cache(worth: float, seed: int) -> None:
    gain, draw = Gain(), random.Random(seed)
    for number in range(200):
        tokens, share = draw.uniform(50, 8000), draw.uniform(0.5, 0.95) * (number % 2)
        took_s = (0.06 + 1e-4 * tokens * (1.0 - share * worth)) * draw.uniform(0.8, 1.2)
        late_s = draw.uniform(0.5, 5.0) if draw.random() < 0.04 and number > 16 else 0.0
        gain.observe(tokens, share, took_s + late_s)
    assert abs(gain.worth - worth) < 0.25


@pytest.mark.parametrize(("new", "known"), [(4000.0, 400.0), (300.0, 4000.0)])
def test_lengths_that_never_differ_say_nothing_of_matches(new: float, known: float) -> None:
    """Any worth is in keeping with such times: matches stay worth what they were."""
    gain = Gain()
    for _ in range(60):
        gain.observe(new, 0.0, 0.06 + 1e-4 * new)
        gain.observe(known, 0.9, 0.06 + 1e-5 * known if new > known else 0.06 + 1e-4 * known)
    assert gain.worth == 1.0


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
        whole = max(0, len(before) - 1)  # the last block may hold the list's end
        assert found[:whole] == before[:whole]
        before = found
        messages.append({"role": "assistant", "content": turn[::-1]})
