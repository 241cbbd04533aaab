"""How answers of a shadow are compared, and what the report of many comparisons says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from penstock.fleet.evidence.comparison import EXAMPLES, Comparison, merge, read, report
from penstock.fleet.evidence.differences import Body, Difference, difference


def of(one: object, other: object) -> Difference:
    return difference(Body(json.dumps(one).encode()), Body(json.dumps(other).encode()))


def v2(data: object, shape: list[int], name: str = "y", **more: object) -> dict[str, object]:
    return {"model_name": "m", **more, "outputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": data}]}


def test_equal_answers_are_equal_whoever_gave_them() -> None:
    found = of(v2([1.0, 2.0], [2], model_version="1", id="a"), v2([1.0, 2.0], [2], model_version="2", id="b"))
    assert (found.equal, found.values, found.max_abs, found.unlike) == (True, 3, 0.0, "")  # and the shape's number


def test_differences_within_the_tolerance_are_equal_and_measured() -> None:
    found = of(v2([1.0, 2.0], [2]), v2([1.00005, 2.0], [2]))
    assert found.equal
    assert found.max_abs == pytest.approx(5e-5)
    assert found.max_rel == pytest.approx(5e-5, rel=1e-3)


def test_larger_differences_are_not_equal() -> None:
    found = of(v2([1.0, 2.0], [2]), v2([1.5, 2.0], [2]))
    assert (found.equal, found.unlike, found.max_abs) == (False, "", 0.5)
    assert found.max_rel == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (v2([1.0, 2.0], [2]), v2([1.0, 2.0, 3.0], [3]), "data"),
        ({"a": 1}, {"b": 1}, "other keys, a, b"),
        ({"a": 1}, {"a": "x"}, "int and str"),
        ({"a": [1, "x"]}, {"a": [1, "x", 2]}, "2 and 3 items"),
        ({"a": None}, {"a": 1}, "NoneType and int"),
    ],
)
def test_what_cannot_be_subtracted_says_where(one: object, other: object, words: str) -> None:
    found = of(one, other)
    assert not found.equal
    assert words in found.unlike


def test_texts_and_truths_are_compared_as_they_are() -> None:
    assert of({"label": "cat", "sure": True}, {"label": "cat", "sure": True}).equal
    found = of({"label": "cat"}, {"label": "dog"})
    assert (found.equal, found.unlike, found.max_rel) == (False, "", 1.0)


def test_rows_of_scores_are_ranked() -> None:
    one = v2([0.7, 0.3, 0.2, 0.8, 0.6, 0.4], [3, 2])
    other = v2([0.6, 0.4, 0.9, 0.1, 0.5, 0.5], [3, 2])
    found = of(one, other)
    assert (found.ranked, found.agreed) == (3, 2)
    assert of(v2([3.0, -1.0], [1, 2], "logits"), v2([-3.0, 1.0], [1, 2], "logits")).ranked == 1
    assert of(v2([3.0, -1.0], [1, 2]), v2([-3.0, 1.0], [1, 2])).ranked == 0, "a regression with two outputs"
    assert of([[0.1, 0.9]], [[0.1, 0.9]]).agreed == 1


def test_binary_tensors_are_compared_by_value() -> None:
    def binary(values: list[float]) -> Body:
        data = np.array(values, "<f4").tobytes()
        output = {"name": "p", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"outputs": [output]}).encode()
        return Body(head + data, len(head))

    found = difference(binary([0.75, 0.25]), binary([0.5, 0.5]))
    assert (found.equal, found.max_abs, found.ranked, found.agreed) == (False, 0.25, 1, 1)
    assert difference(binary([0.75, 0.25]), binary([0.75, 0.25])).ranked == 1


@pytest.mark.parametrize(
    ("one", "other", "max_rel"), [([float("nan")], [float("nan")], 0.0), ([1.0], [float("inf")], 2.0)]
)
def test_numbers_that_are_not_finite(one: object, other: object, max_rel: float) -> None:
    found = of(one, other)
    assert (found.equal, found.max_rel) == (max_rel == 0, max_rel)
    assert np.isfinite(found.max_abs)


def test_other_bytes_and_deep_nests_end() -> None:
    assert difference(Body(b"\xff\x00"), Body(b"\xff\x00")).equal
    assert difference(Body(b"\xff\x00"), Body(b"\xff\x01")).unlike == "no JSON, and other bytes"
    deep = b'{"a":' * 500 + b"1" + b"}" * 500
    assert difference(Body(deep), Body(deep.replace(b"1", b"2"))).unlike.endswith("nested too deep")
    assert not difference(Body(b"[" * 100_000), Body(b"[" * 100_001)).equal
    short = Body(b'{"outputs":[{"name":"p","shape":[9],"datatype":"FP32","parameters":{"binary_data_size":3}}]}abc', 92)
    assert not difference(short, Body(short.data[:-1] + b"d", 92)).equal


JSON = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers(-(2**70), 2**70) | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON)
def test_any_two_documents_can_be_compared(one: object, other: object) -> None:
    there, back = of(one, other), of(other, one)
    assert of(one, one).equal
    assert (there.equal, there.max_abs, there.max_rel) == (back.equal, back.max_abs, back.max_rel)
    assert 0 <= there.max_rel <= 2
    assert there.agreed <= there.ranked


def sums(pairs: int, *, late: float = 0.01, status: int = 200, badness: float = 0.0) -> str:
    made = Comparison()
    for _ in range(pairs):
        made.pair((200, status), (0.02, 0.02 + late))
        if status == 200:
            made.outputs(Difference(values=3, ranked=1, agreed=1))
        if badness and made.worth_an_example(badness):
            made.example(badness, {"what": f"{badness}"})
    return made.document()


def test_a_report_tells_shares_and_quantiles() -> None:
    told = report(merge(merge(sums(98), sums(1, late=1.0)), sums(1, status=500, late=-0.019)))
    assert told["compared"] == 100
    assert told["status"] == {"equal": 99, "equal_share": 0.99, "pairs": {"200/200": 99, "200/500": 1}}
    latency = told["latency_ms"]
    assert isinstance(latency, dict)
    assert latency["real"]["p50"] == pytest.approx(20, rel=0.3)
    assert latency["shadow"]["p50"] == pytest.approx(30, rel=0.3)
    assert latency["difference"]["p50"] == pytest.approx(10, rel=0.3)
    outputs = told["outputs"]
    assert isinstance(outputs, dict)
    assert (outputs["compared"], outputs["equal_share"], outputs["top_agreement"]) == (99, 1.0, 1.0)


def test_a_faster_shadow_has_a_negative_difference() -> None:
    latency = report(sums(10, late=-0.015))["latency_ms"]
    assert isinstance(latency, dict)
    assert latency["difference"]["p50"] == pytest.approx(-15, rel=0.3)


def test_the_report_of_nothing_has_no_figures() -> None:
    told = report("")
    assert told["compared"] == 0
    assert told["status"] == {"equal": 0, "equal_share": None, "pairs": {}}


def test_documents_stay_small_and_the_worst_examples_stay() -> None:
    total = ""
    for n in range(200):
        total = merge(total, sums(1, badness=1.0 + n))
    for status in range(100):
        total = merge(total, sums(1, status=500 + status))
    found = read(total)
    assert [one["what"] for one in found.examples] == [f"{1.0 + n}" for n in range(199, 199 - EXAMPLES, -1)]
    assert len(found.statuses) <= 33
    assert sum(found.statuses.values()) == 300
    assert len(total) < 5000


@given(some.lists(some.integers(1, 3), min_size=3, max_size=3))
def test_sums_add_up_in_any_order(pairs: list[int]) -> None:
    one, two, three = (sums(n, late=n / 100) for n in pairs)
    assert json.loads(merge(merge(one, two), three)) == json.loads(merge(one, merge(three, two)))
