"""`requests.balance`: which replica a request goes to, by what the deployment asks for."""

from __future__ import annotations

import math
import time

import pytest
from test_router_balancer import Bench, Held

from penstock.core.errors import InvalidInput
from penstock.fleet.router.lanes import Upstream, Waiter
from penstock.fleet.router.prefix_choice import MOST_ADAPTERS, leave
from penstock.fleet.router.prefixes import MOST_BLOCKS, Prefixes
from penstock.fleet.router.prompts import WRITTEN_COST, Prompt, read_document, read_prompt
from penstock.fleet.router.talk import Talk
from penstock.fleet.routes import Arm
from penstock.fleet.routes import Upstream as Address
from penstock.fleet.spec import BALANCES, Sticky, read

CHAT = "/v1/chat/completions"


def arm(*ids: str) -> Arm:
    return Arm(1, 1.0, tuple(Address(id, f"{id}:1") for id in ids))


def prompt(text: str, **more: object) -> Prompt:
    return read_prompt(CHAT, {"model": "chat", "messages": [{"role": "user", "content": text}], **more}, len(text))


def taken(bench: Bench, **more: object) -> Upstream:
    upstream = bench.acquire(0, **more)
    assert upstream is not None
    return upstream


def done(bench: Bench, upstream: Upstream, key: Prompt | None = None) -> None:
    if key is not None:
        leave(key)
    bench.balancer.release(upstream, bench.clock.now)


def test_round_robin_goes_round() -> None:
    bench = Bench(arm("a", "b", "c"), balance="round_robin")
    order = []
    for _ in range(6):
        upstream = taken(bench)
        order.append(upstream.id)
        done(bench, upstream)
    assert order[:3] == order[3:] and sorted(order[:3]) == ["a", "b", "c"]


def test_least_takes_the_one_with_least_in_flight_of_all() -> None:
    bench = Bench(arm("a", "b", "c"), balance="least")
    held = [taken(bench) for _ in range(30)]
    assert [sum(one.id == id for one in held) for id in "abc"] == [10, 10, 10]
    for one in held:
        done(bench, one)


def test_a_conversation_stays_where_it_was_and_others_go_elsewhere_under_load() -> None:
    bench = Bench(arm("a", "b", "c"))
    first = prompt("tell me a story " * 200)
    home = taken(bench, session=first)
    done(bench, home, first)
    for length in (210, 220, 230):
        turn = prompt("tell me a story " * length)
        assert taken(bench, session=turn) is home
        done(bench, home, turn)
    crowd = [prompt("tell me a story " * 200 + str(number)) for number in range(12)]
    places = {taken(bench, session=one).id for one in crowd}
    assert places == {"a", "b", "c"}, "what many share comes to be on as many replicas as its load needs"


def test_a_replica_that_failed_is_believed_to_have_lost_its_cache() -> None:
    bench = Bench(arm("a", "b"))
    first = prompt("x" * 4000)
    home = taken(bench, session=first)
    done(bench, home, first)
    assert len(home.prefixes) > 10
    bench.balancer.failed(home)
    assert len(home.prefixes) == 0


def test_a_replica_that_says_it_had_nothing_is_believed_to_keep_less() -> None:
    prefixes = Prefixes(1000)
    for number in range(900):
        prefixes.use((number,), 0.0)
    prefixes.learn(10, 0)
    assert len(prefixes) == 900, "engines that cannot tell say 0"
    prefixes.learn(10, 9)
    prefixes.learn(10, 0)
    assert len(prefixes) == 675 and prefixes.match((899,), 1.0) == 1 and not prefixes.match((100,), 1.0)
    for _ in range(40):
        prefixes.learn(10, 0)
    assert len(prefixes) == 64
    for _ in range(200):
        prefixes.learn(10, 9)
    for number in range(2000):
        prefixes.use((number,), 900.0)
    assert len(prefixes) == 1000


def test_giving_up_much_costs_as_much_for_each_block_as_giving_up_little() -> None:
    """Each deletion at the front of a dictionary leaves a hole, that looking for its first key goes over again."""

    def shrinking_s(count: int) -> float:
        best_s = math.inf
        for _ in range(5):
            prefixes = Prefixes(count)
            prefixes.use(range(count), 0.0)
            began = time.process_time()
            prefixes.learn(1, 1)
            prefixes.learn(10, 1)
            best_s = min(best_s, time.process_time() - began)
            assert len(prefixes) == count * 3 // 4
        return best_s

    assert shrinking_s(65_536) < 50 * shrinking_s(4096), "sixteen times as many, a hundred times as long"


def test_a_replica_that_was_started_anew_begins_without_a_cache() -> None:
    bench = Bench(arm("a", "b"))
    first = prompt("x" * 4000)
    done(bench, taken(bench, session=first), first)
    bench.table(Arm(1, 1.0, (Address("a", "a:2"), Address("b", "b:2"))))
    assert not any(len(one.prefixes) for one in bench.service.lanes[0].upstreams)


def test_who_waited_is_counted_where_it_goes() -> None:
    bench = Bench(arm("a", "b"), max_in_flight=1)
    both = [prompt("first" * 300), prompt("second" * 300)]
    places = [taken(bench, session=one) for one in both]
    third = prompt("second" * 300)
    assert bench.acquire(0, session=third) is None
    held = Held()
    bench.balancer.wait(bench.service, Waiter(held, bench.lane(0), third, "", 1.0, 1e9, bench.clock.now))
    done(bench, places[0], both[0])
    assert held.upstream is places[0] and third.upstream is places[0] and held.upstream.load > 0
    done(bench, places[0], third)
    done(bench, places[1], both[1])
    assert [one.load for one in bench.service.lanes[0].upstreams] == [0.0, 0.0]


def test_prompts_of_an_adapter_go_where_it_was_served_lately() -> None:
    bench = Bench(arm("a", "b", "c", "d"))
    homes = set()
    for number in range(8):
        one = prompt(f"{number} short")
        one.adapter = "polite"
        upstream = taken(bench, session=one)
        homes.add(upstream.id)
        done(bench, upstream, one)
    assert len(homes) == 1


def test_a_session_stays_on_its_replica_whatever_its_prompts_say() -> None:
    bench = Bench(arm("a", "b", "c"), affinity=Sticky(name="session"))
    warm = prompt("y" * 5000)
    done(bench, taken(bench, session=warm), warm)
    homes = set()
    for number in range(6):
        one = prompt("y" * 5000 + str(number))
        one.session = b"somebody else"
        upstream = taken(bench, session=one)
        homes.add(upstream.id)
        done(bench, upstream, one)
    assert len(homes) == 1


def test_what_will_be_written_counts_a_little_and_within_bounds() -> None:
    short, long = prompt("hi", max_tokens=1), prompt("hi", max_tokens=50)
    assert (short.decode, long.decode) == (WRITTEN_COST, 50 * WRITTEN_COST)
    assert (
        prompt("hi", max_tokens=10**9).decode
        == prompt("hi").decode
        == prompt("hi", max_tokens=30, n=4).decode
        == 64 * WRITTEN_COST
    )
    assert read_prompt("/v1/embeddings", {"model": "m", "input": ["a"]}, 10).decode == 0


def test_a_streams_first_token_tells_what_a_match_is_worth_and_a_whole_answer_does_not() -> None:
    """Each prompt is read by an idle replica, the first of each pair anew."""
    bench = Bench(arm("a", "b"))

    def ask(text: str, answer: bytes, took_s: float) -> None:
        asked = prompt(text)
        upstream = taken(bench, session=asked)
        talk = Talk(asked, True, lambda: bench.clock.now)
        bench.clock.now += took_s
        talk.answers(200, upstream)
        talk.pieces((answer,))
        talk.over()
        done(bench, upstream)

    gain = bench.lane(0).gain
    for number in range(10):
        ask(f"{number}" * 4000, b'{"whole": "answer"}', 2.0)
        ask(f"{number}" * 4000, b'{"whole": "answer"}', 2.0)
    assert gain.worth == 1.0, "the time of a whole answer is that of writing it, too"
    for number in range(10):
        ask(f"{number}x" * 2000, b"data: {}\n\n", 2.0)
        ask(f"{number}x" * 2000, b"event: one\ndata: {}\n\n", 0.1)
    assert gain.worth > 0.9
    for number in range(40):
        ask(f"{number}y" * 2000, b"data: {}\n\n", 2.0)
        ask(f"{number}y" * 2000, b"data: {}\n\n", 2.0)
    assert gain.worth < 0.1


def test_an_answer_that_another_replica_gives_says_nothing_of_the_one_that_was_chosen() -> None:
    """A hedge's: the first one may be busy, and the other one's cache is not its own."""
    bench = Bench(arm("a", "b"))
    gain = bench.lane(0).gain

    def ask(text: str, took_s: float, *, hedged: bool) -> Upstream:
        asked = prompt(text)
        first = taken(bench, session=asked)
        other = next(one for one in bench.lane(0).upstreams if one is not first)
        talk = Talk(asked, True, lambda: bench.clock.now)
        bench.clock.now += took_s
        talk.answers(200, other if hedged else first)
        talk.pieces((
            b'data: {"usage":{"prompt_tokens":1000,"completion_tokens":1,'
            b'"prompt_tokens_details":{"cached_tokens":0}}}\n\n',
        ))  # fmt: skip
        talk.over()
        assert first.load == 0.0
        done(bench, first)
        return first

    for number in range(40):
        for _ in range(2):
            first = ask(f"{number:03}" * 1300, 2.0, hedged=True)
            first.prefixes.learn(1, 1)  # it can tell
    assert gain.worth == 1.0, "neither time was its own"
    before = len(first.prefixes)
    ask("039" * 1300, 2.0, hedged=True)
    assert len(first.prefixes) == before, "what another one had of it is not what this one has"
    ask("039" * 1300, 2.0, hedged=False)
    assert len(first.prefixes) < before


def test_the_time_of_a_replica_beside_which_a_hedge_was_asked_does_not_count() -> None:
    """Only those that dawdle have one: their times are not what reading takes."""
    bench = Bench(arm("a", "b"))
    for number in range(80):
        asked = prompt(f"{number // 2:03}" * 1300)
        first = taken(bench, session=asked)
        talk = Talk(asked, True, lambda: bench.clock.now)
        talk.hedged()
        bench.clock.now += 2.0
        talk.answers(200, first)
        talk.pieces((b"data: {}\n\n",))
        talk.over()
        done(bench, first)
    assert bench.lane(0).gain.worth == 1.0


@pytest.mark.parametrize("body", [b"", b"[]", b"nope", b'{"a":', b"\xff"])
def test_a_body_that_is_no_object_is_told(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="JSON"):
        read_document(body)


def test_a_body_beyond_the_limit_is_not_cut_into_blocks() -> None:
    long = read_prompt(CHAT, {"model": "m", "prompt": "x" * (1 << 20)}, 1 << 21)
    assert long.keys == () and long.tokens > 200_000


def test_the_spec_knows_every_balance_and_what_excludes_what() -> None:
    for balance in BALANCES:
        requests: dict[str, object] = {"balance": balance}
        if balance == "affinity":
            requests["affinity"] = {"name": "session"}
        assert read("m", {"model": "x", "requests": requests}).requests.balance == balance
    for requests, words in (
        ({"balance": "prefixes"}, "did you mean 'prefix'"),
        ({"balance": "affinity"}, "needs requests.affinity"),
        ({"balance": "round_robin", "affinity": {"name": "s"}}, "without an effect"),
    ):
        with pytest.raises(InvalidInput, match=words):
            read("m", {"model": "x", "requests": requests})


def nested(depth: int) -> bytes:
    return b'{"model":"chat","messages":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("depth", [200, 253, 254, 600, 1023])
def test_a_body_that_is_nested_deeply_is_balanced_by_load(depth: int) -> None:
    body = nested(depth)
    found = read_prompt(CHAT, read_document(body), len(body))
    assert found.tokens >= len(body) / 8


@pytest.mark.parametrize("depth", [1025, 100_000])
def test_a_body_that_is_nested_without_end_is_refused(depth: int) -> None:
    with pytest.raises(InvalidInput, match="not valid JSON"):
        read_document(nested(depth))


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": -1}, {"max_tokens": True}, {"max_tokens": 1e300}, {"max_tokens": "9"}, {"n": -5}, {"n": 10**30},
        {"n": True}, {"tools": {"a": [None]}}, {"system": 7}, {"messages": 3}, {"messages": {"1": [[]]}}, {"model": []},
    ],
)  # fmt: skip
def test_values_that_nobody_should_send_make_no_prompt_costly(more: dict[str, object]) -> None:
    found = read_prompt(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x" * 600}], **more}, 700)
    assert 0 <= found.output <= 16 * 1024 and 0 <= found.decode <= 64 * WRITTEN_COST and 0 <= found.tokens < 1000


def test_what_is_believed_of_a_replica_is_bounded_whatever_is_sent() -> None:
    """A caller who sends a million different beginnings, and adapters without end, costs a router no more memory."""
    bench = Bench(arm("a", "b"))
    held = []
    for number in range(300):
        asked = read_prompt(CHAT, {"model": "m", "prompt": f"{number}" + "x" * 100_000}, 100_100)
        asked.adapter = f"adapter {number}"
        held.append((taken(bench, session=asked), asked))
    for upstream, asked in held:
        done(bench, upstream, asked)
    replicas = bench.service.lanes[0].upstreams
    assert sum(len(one.prefixes) for one in replicas) == 2 * MOST_BLOCKS
    assert all(len(one.adapters) <= MOST_ADAPTERS and not one.load for one in replicas)
    # What is old goes with the next prompt.
    bench.clock.now += 10_000
    for _ in range(2):
        taken(bench, session=prompt("hello " * 100))
    assert all(len(one.prefixes) <= 2 for one in replicas)
