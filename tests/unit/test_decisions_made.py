"""Which arm a request of a logged, sticky or contextual endpoint gets, and what is logged of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from penstock.core.errors import InvalidInput
from penstock.fleet.feedback.token import verify
from penstock.fleet.router.decision import Decider, read_context
from penstock.fleet.router.sticky import user_key
from penstock.fleet.routes import Arm, Contextual, Endpoint, Table
from penstock.fleet.spec import Sticky
from penstock.fleet.store.batch import Decision

SECRET = "77" * 32
ARMS = (Arm(1, 0.7), Arm(4, 0.3))


@dataclass
class Kept:
    decisions: list[Decision] = field(default_factory=list)

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)


class Second:
    """Always the second of two, by half."""

    def choose(self, parameters: Contextual, context: Sequence[float], draw: float) -> tuple[int, float]:
        return 1, 0.5


def decider(log: Kept | None = None, seed: bytes = b"1") -> Decider:
    made = Decider(log or Kept(), lambda name: Second(), clock=lambda: 1000.0, seed=seed)
    made.table(Table(1, secret=SECRET))
    return made


def test_a_draw_is_logged_with_its_propensity_once_it_is_answered() -> None:
    log = Kept()
    maker, endpoint = decider(log), Endpoint("fraud", ARMS, 1, experiment=7, logged=True)
    made = maker.decide(endpoint, {}, b"", 0.9)
    assert (made.arm, made.propensity) == (1, pytest.approx(0.3))
    assert log.decisions == []
    maker.answered(endpoint, made, 4, 200, 0.01)
    (logged,) = log.decisions
    assert (logged.deployment, logged.experiment, logged.revision, logged.at) == ("fraud", 7, 4, 1000.0)
    assert verify(made.token, SECRET, "fraud", 1000.0) == logged


def test_a_decision_that_another_revision_answered_is_not_logged() -> None:
    log = Kept()
    maker, endpoint = decider(log), Endpoint("fraud", ARMS, 1, experiment=7, logged=True)
    maker.answered(endpoint, maker.decide(endpoint, {}, b"", 0.9), 1, 200, 0.01)
    assert log.decisions == []


def test_ids_differ() -> None:
    maker, endpoint = decider(), Endpoint("fraud", ARMS, 1, logged=True)
    assert len({maker.decide(endpoint, {}, b"", 0.5).token for _ in range(1000)}) == 1000


def test_without_a_secret_or_a_log_there_is_no_token() -> None:
    maker = decider()
    assert maker.decide(Endpoint("fraud", ARMS, 1), {}, b"", 0.5).token == ""
    maker.table(Table(2))
    assert maker.decide(Endpoint("fraud", ARMS, 1, logged=True), {}, b"", 0.5).token == ""


def test_a_user_gets_the_same_arm_from_every_router_and_after_restarts() -> None:
    endpoint = Endpoint("fraud", ARMS, 1, logged=True, sticky=Sticky("header", "X-User"))
    routers = [decider(seed=bytes([n])) for n in range(3)]
    numbers = random.Random(3)
    counts: Counter[int] = Counter()
    for user in range(4000):
        headers = {"x-user": f"user-{user}"}
        arms = {router.decide(endpoint, headers, b"", numbers.random()).arm for router in routers}
        assert len(arms) == 1
        counts[arms.pop()] += 1
    assert counts[1] / 4000 == pytest.approx(0.3, abs=0.03)
    # A golden value: an assignment may not change with a release either.
    assert [routers[0].decide(endpoint, {"x-user": name}, b"", 0.0).arm for name in "abcdefgh"] == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
    ]


def test_two_experiments_assign_a_user_independently() -> None:
    maker, sticky = decider(), Sticky("header", "u")
    half = (Arm(1, 0.5), Arm(2, 0.5))
    pairs = Counter(
        tuple(maker.decide(Endpoint(name, half, 1, sticky=sticky), {"u": str(user)}, b"", 0.0).arm for name in "ab")
        for user in range(4000)
    )
    assert all(n / 4000 == pytest.approx(0.25, abs=0.04) for n in pairs.values())


def test_who_has_no_key_is_drawn() -> None:
    endpoint = Endpoint("fraud", ARMS, 1, sticky=Sticky("header", "u"))
    assert [decider().decide(endpoint, {}, b"", number).arm for number in (0.1, 0.69, 0.71)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("sticky", "headers", "key"),
    [
        (Sticky("header", "X-User"), {"x-user": " 7 "}, "7"),
        (Sticky("header", "X-User"), {"x-users": "7"}, ""),
        (Sticky("cookie", "sid"), {"cookie": "a=1; sid=xyz; sid=2"}, "xyz"),
        (Sticky("cookie", "sid"), {"cookie": 'b=2, sid="q"'}, "q"),
        (Sticky("cookie", "sid"), {"cookie": "asid=1; sid"}, ""),
        (Sticky("cookie", "sid"), {}, ""),
    ],
)
def test_keys_come_from_headers_and_cookies(sticky: Sticky, headers: dict[str, str], key: str) -> None:
    assert user_key(sticky, headers) == key


def test_a_contextual_choice_carries_its_context() -> None:
    log = Kept()
    maker = decider(log)
    endpoint = Endpoint("fraud", ARMS, 1, 7, logged=True, contextual=Contextual("linucb", 2))
    made = maker.decide(endpoint, {"penstock-context": "1, 0.5"}, b"", 0.0)
    assert (made.arm, made.propensity) == (1, 0.5)
    assert verify(made.token, SECRET, "fraud", 1000.0).context == (1.0, 0.5)


@pytest.mark.parametrize(
    ("headers", "body", "context"),
    [
        ({"penstock-context": "[1,2,3]"}, b"junk", (1.0, 2.0, 3.0)),
        ({}, b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3.5]}]}', (1.0, 2.0, 3.5)),
        ({}, b'{"inputs": [{"name": "x", "shape": [1, 3], "data": [[1, 2, 3]]}]}', (1.0, 2.0, 3.0)),
        ({}, b'{"instances": [[1, 2, 3]]}', (1.0, 2.0, 3.0)),
        ({}, b"[[1, 2, 3]]", (1.0, 2.0, 3.0)),
    ],
)
def test_contexts_are_found(headers: dict[str, str], body: bytes, context: tuple[float, ...]) -> None:
    assert read_context(Contextual("linucb", 3), headers, body) == context


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"penstock-context": "1,2"}, b"", "2 numbers"),
        ({"penstock-context": "a"}, b"", "numbers apart by commas"),
        ({"penstock-context": ""}, b"", "numbers apart by commas"),
        ({"penstock-context": "1,2,nan"}, b"", "not finite"),
        ({}, b"", "send the header Penstock-Context"),
        ({}, b'{"instances": [[1, 2, 3], [1, 2, 3]]}', "send the header"),
        ({}, b'{"inputs": [{"data": [[1, 2, 3], [1, 2, 3]]}]}', "send the header"),
        ({}, b'{"inputs": [{"data": ["a"]}]}', "send the header"),
        ({}, b'{"instances": [[1, 2]]}', "2 numbers"),
    ],
)
def test_what_is_no_context_says_why(headers: dict[str, str], body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_context(Contextual("linucb", 3), headers, body)
