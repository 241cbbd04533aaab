"""The checker's rules, each seen to be broken by one wrong entry; the schedule; the charts' scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.client.made_up import make_up
from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.tensor import TensorSpec
from penstock.ledger import Fault, Phase, Plan, charts, faults, schedule
from penstock.ledger.book import Entry
from penstock.ledger.checker import check
from penstock.ledger.counters import Counters
from penstock.ledger.payloads import Payloads
from penstock.ledger.report import percentile, summarise

PLAN = Plan((Phase(1, 10),), deadline_s=1.0, slack_s=0.1)
NONE = Counters("test", 0, 0)


def entry(outcome: str | None = "ok", ended: float = 0.5, **fields: object) -> Entry:
    made = Entry(0, 0.0, 0, "http", 0, 1.0, sent=0.0)
    if outcome is not None:
        made.end(ended, outcome)  # type: ignore[arg-type]  # the tests' own words
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (entry(None), "lost"),
        (entry("lost", 6.0), "lost"),
        (entry(ends=2), "doubled"),
        (entry(crossed="y is 3, not 4"), "crossed"),
        (entry("ok", 1.2), "late"),
        (entry("unavailable", 1.2), "late"),
        (entry("error"), "untruthful"),
        (entry("cut"), "untruthful"),
        (entry("refused"), "untruthful"),
        (entry("deadline", 0.2), "untruthful"),
        (entry("unsent", 6.0), "unsent"),
    ],
)
def test_each_rule_is_broken_by_what_breaks_it_alone(wrong: Entry, kind: str) -> None:
    assert check([entry()], PLAN) == []
    assert [violation.kind for violation in check([entry(), wrong], PLAN)] == [kind]


def test_late_answers_are_no_fault_where_they_say_so_or_the_generator_is_late_itself() -> None:
    assert check([entry(), entry("deadline", 1.4)], PLAN) == []
    assert check([entry("ok", 1.2)], PLAN, on_time=False) == []


def test_outcomes_that_a_plan_allows_are_truthful() -> None:
    assert check([entry(), entry("error")], replace(PLAN, allowed=PLAN.allowed | {"error"})) == []


@pytest.mark.parametrize(("counted", "broken"), [(1, True), (2, False), (3, False), (4, True)])
def test_server_must_count_what_was_seen_and_may_count_what_nobody_could_see(counted: int, broken: bool) -> None:
    seen = [entry(), entry(), entry("left"), entry("unavailable")]
    found = check(seen, PLAN, NONE, Counters("test", counted))
    assert [violation.kind for violation in found] == (["miscounted"] if broken else [])


def test_a_server_that_began_to_count_anew_is_not_judged_by_its_counters() -> None:
    assert check([entry()], PLAN, Counters("test", 100), NONE) == []
    assert check([entry()], PLAN, Counters("test", 0, since=1.0), Counters("test", 100, since=2.0)) == []
    assert check([entry()], PLAN, Counters("test", 0), Counters("another", 100)) == []


def test_server_that_answers_nothing_rightly_is_useless() -> None:
    assert [violation.kind for violation in check([entry("unavailable")], PLAN)] == ["useless"]


def test_schedule_is_the_plans_alone_and_keeps_rate_and_shares() -> None:
    plan = Plan((Phase(10, 100), Phase(5, 1000)), leave_share=0.25, grpc_share=0.5)
    due = list(schedule.entries(plan, 8))
    assert due == list(schedule.entries(plan, 8)) != list(schedule.entries(replace(plan, seed=1), 8))
    assert [one.scheduled for one in due] == sorted(one.scheduled for one in due)
    first = [one for one in due if one.phase == 0]
    assert len(first) == pytest.approx(1000, rel=0.15) and len(due) - len(first) == pytest.approx(5000, rel=0.1)
    assert all(one.scheduled < 10 for one in first)
    assert sum(one.leave_after_s is not None for one in due) / len(due) == pytest.approx(0.25, abs=0.03)
    assert sum(one.protocol == "grpc" for one in due) / len(due) == pytest.approx(0.5, abs=0.03)
    assert len({one.id for one in due}) == len(due)
    even = list(schedule.entries(Plan((Phase(1, 10),), poisson=False), 1))
    assert np.diff([one.scheduled for one in even]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"phases": ()}, {"phases": (Phase(0, 1),)}, {"leave_share": 2.0}, {"grpc_share": -1.0}, {"deadline_s": 0.0}],
)
def test_plan_that_cannot_be_carried_out_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        replace(PLAN, **wrong)  # type: ignore[arg-type]


SPECS = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("t", "BYTES", (-1, 1)))


def known() -> Payloads:
    made = [make_up(SPECS, 2, seed=(0, number)) for number in range(5)]
    return Payloads("m", "", made, {spec.name: spec.datatype for spec in SPECS})


def answers(scale: float) -> list[dict[str, np.ndarray]]:
    return [{"y": scale * np.asarray(one.inputs["x"], "f4")} for one in known().items]


def test_right_answers_are_learnt_and_others_are_told() -> None:
    learnt = known()
    learnt.learn(answers(3), answers(3.0001))  # rounding of another batch size
    assert learnt.told_apart == 1.0
    assert learnt[0].wrong(answers(3)[0]) == ""
    assert "output y is" in learnt[0].wrong(answers(3)[1])
    assert "missing" in learnt[0].wrong({"z": answers(3)[0]["y"]})
    assert "shape" in learnt[0].wrong({"y": answers(3)[0]["y"][:1]})


@pytest.mark.parametrize(("first", "second", "says"), [(3, 4, "differently"), (0, 0, "only 0%")])
def test_model_whose_answers_say_nothing_is_refused(first: float, second: float, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        known().learn(answers(first), answers(second))


def test_grpc_body_is_the_request_with_its_id() -> None:
    learnt = known()
    request = learnt._request.FromString(learnt.grpc_body(1, "00ff", 0.5))
    assert (request.id, request.model_name, list(request.inputs[0].shape)) == ("00ff", "m", [2, 3])
    assert request.parameters["timeout"].int64_param == 500_000


@pytest.mark.parametrize("body", [b"", b"[]", b'{"outputs": [{"name": "y"}]}', b'{"outputs": 3}'])
def test_answer_that_is_none_is_told(body: bytes) -> None:
    with pytest.raises(PenstockError):
        known().read_json(body)


def test_fractions_are_no_whole_numbers() -> None:
    body = b'{"outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [1.7]}]}'
    with pytest.raises(PenstockError):
        known().read_json(body)


def test_grpc_answer_that_is_none_is_told_and_an_empty_output_is_one() -> None:
    learnt = known()
    with pytest.raises(PenstockError):
        learnt.read_grpc(b"\xff\xff")
    answer = learnt._response()
    output = answer.outputs.add(name="y", datatype="UINT8", shape=[0])
    assert learnt.read_grpc(answer.SerializeToString())[2]["y"].shape == (0,)
    output.shape[:] = [1]
    output.contents.uint_contents.append(300)
    with pytest.raises(PenstockError):
        learnt.read_grpc(answer.SerializeToString())


@pytest.mark.parametrize("text", ["kill", "kill@", "maim@1", "kill:nobody@1", "kill@-1"])
def test_fault_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        faults.parse(text, 1)


def test_fault_names_action_victim_and_second() -> None:
    assert faults.parse("stop:worker@2.5", 7) == Fault(2.5, "stop", 7, "worker")
    assert faults.parse("terminate@3", 7) == Fault(3.0, "terminate", 7, "server")
    with pytest.raises(InvalidInput, match="--pid"):
        faults.parse("kill@1", None)


def test_goodput_counts_right_answers_in_time_only() -> None:
    some = [entry("ok", 0.5), entry("ok", 1.05), entry("ok", 0.5, crossed="x"), entry("unavailable", 0.01)]
    summary = summarise(some, 2.0)
    assert (summary.goodput, summary.sent, summary.refusal_p99_s) == (0.5, 4, 0.01)


def test_percentile_is_the_nearest_rank() -> None:
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (1.1, 2), (23, 25), (0.03, 0.05), (7, 10)])
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert charts.nice(value) == pytest.approx(top)
