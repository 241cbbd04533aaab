"""Bodies of feedback: which rewards they hold, and what is answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from penstock.core.errors import AlreadyExists, InvalidInput, NotFound, PenstockError, TooLarge
from penstock.fleet.feedback import calls
from penstock.fleet.feedback.token import sign
from penstock.fleet.router.feedback import Feedback
from penstock.fleet.routes import Arm, Endpoint, Table
from penstock.fleet.store.batch import Decision, Outcome, Reward

SECRET = "0f" * 32
NOW = 1_700_000_000.0
TABLE = Table(1, (Endpoint("fraud", (Arm(1, 1.0),), 1),), secret=SECRET)
MADE = [Decision(f"{n:016x}", "fraud", 7, 1 + n % 2, 0.5, NOW - n) for n in range(4)]
TOKENS = [sign(made, SECRET) for made in MADE]


def read(document: object, name: str = "fraud") -> calls.Call:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return calls.read(name, body, TABLE, NOW)


def test_a_reward_is_read_and_answered() -> None:
    call = read({"token": TOKENS[1], "reward": 0.3})
    assert call.rewards == (Reward(MADE[1], 0.3),)
    status, body = calls.answer(call, [Outcome(0.3, True)])
    assert (status, json.loads(body)) == (200, {"decision": MADE[1].id, "experiment": 7, "revision": 2, "reward": 0.3})
    assert calls.answer(call, [Outcome(0.3, False)]) == (status, body), "sent again, the answer is the same"


@pytest.mark.parametrize(("written", "value"), [(True, 1.0), (False, 0.0), (-3, -3.0), (1e15, 1e15)])
def test_numbers_and_truths_are_rewards(written: object, value: float) -> None:
    assert read({"token": TOKENS[0], "reward": written}).rewards[0].value == value


@pytest.mark.parametrize(
    ("outcome", "kind", "words"),
    [(Outcome(1.0, False), AlreadyExists, "1.0 already"), (Outcome(None, False), InvalidInput, "too old")],
)
def test_a_reward_that_did_not_count_is_an_error(outcome: Outcome, kind: type[PenstockError], words: str) -> None:
    call = read({"token": TOKENS[0], "reward": 0.3})
    with pytest.raises(kind, match=words):
        calls.answer(call, [outcome])


def test_in_bulk_each_reward_has_its_answer() -> None:
    foreign = sign(replace(MADE[0], deployment="other"), SECRET)
    entries = [{"token": TOKENS[0], "reward": 1}, {"token": foreign, "reward": 1}, {"token": TOKENS[2], "reward": 0.5}]
    call = read({"rewards": entries})
    assert [reward.decision for reward in call.rewards] == [MADE[0], MADE[2]]
    status, body = calls.answer(call, [Outcome(1.0, True), Outcome(0.25, False)])
    answer = json.loads(body)
    assert (status, answer["counted"], answer["refused"]) == (400, 1, 2)
    assert [one.get("status") for one in answer["rewards"]] == [None, 400, 409]
    assert "belongs to other" in answer["rewards"][1]["error"]


def test_in_bulk_the_status_tells_whether_all_counted() -> None:
    call = read({"rewards": [{"token": token, "reward": 1} for token in TOKENS]})
    assert calls.answer(call, [Outcome(1.0, True)] * 4)[0] == 200
    assert calls.answer(call, [Outcome(1.0, True)] * 3 + [Outcome(0.0, False)])[0] == 409
    assert calls.answer(call, [Outcome(None, False)] * 3 + [Outcome(0.0, False)])[0] == 400


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        (b"", InvalidInput, "no JSON"),
        (b"{", InvalidInput, "no JSON"),
        (b"\xff", InvalidInput, "no JSON"),
        ([], InvalidInput, "the body is"),
        ({"token": TOKENS[0]}, InvalidInput, "reward is a number"),
        ({"token": TOKENS[0], "reward": "1"}, InvalidInput, "reward is a number"),
        ({"token": TOKENS[0], "reward": None}, InvalidInput, "reward is a number"),
        (b'{"token": "%s", "reward": 1e400}' % TOKENS[0].encode(), InvalidInput, "JSON|lies between"),
        ({"token": TOKENS[0], "reward": 10**16}, InvalidInput, "lies between"),
        ({"token": TOKENS[0], "rewrad": 1}, InvalidInput, "did you mean 'reward'"),
        ({"reward": 1}, InvalidInput, "penstock-decision"),
        ({"rewards": []}, InvalidInput, "at least one"),
        ({"rewards": {}}, InvalidInput, "at least one"),
        ({"rewards": [{}], "token": ""}, InvalidInput, "stands alone"),
        ({"rewards": [{}] * (calls.MOST_REWARDS + 1)}, TooLarge, "send several"),
        (b" " * (calls.MOST_BYTES + 1), TooLarge, "bytes"),
    ],
)
def test_what_is_no_feedback_says_why(document: object, kind: type[PenstockError], words: str) -> None:
    with pytest.raises(kind, match=words):
        read(document)


def test_an_unknown_deployment_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'fraud'"):
        read({"token": TOKENS[0], "reward": 1}, "frawd")


async def test_many_tokens_are_checked_beside_the_loop() -> None:
    threads: list[int] = []

    def clock() -> float:
        threads.append(threading.get_ident())
        return NOW

    class Written:
        async def reward(self, rewards: Sequence[Reward]) -> list[Outcome]:
            return [Outcome(reward.value, True) for reward in rewards]

    feedback = Feedback(Written(), clock=clock)
    feedback.table(TABLE)
    one = {"token": TOKENS[0], "reward": 1}
    for document, many in ((one, False), ({"rewards": [one] * 1000}, True)):
        status, _ = await feedback.feedback("fraud", json.dumps(document).encode())
        assert status == 200
        assert (threads.pop() != threading.get_ident()) is many
