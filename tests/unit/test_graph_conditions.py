"""Conditions on tensors, and the part of GJSON that conditions on bodies use."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.errors import InvalidInput
from penstock.graphs import conditions, gjson

VALUES = {
    "score": np.array([[0.1, 0.9]], np.float32),
    "one": np.array([3], np.int64),
    "text": np.array([b"de"], dtype=object),
    "texts": np.array([b"de", b"fr"], dtype=object),
    "flag": np.array([True]),
    "empty": np.zeros((0, 2), np.float32),
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("max(score) >= 0.5", True), ("max(score) > 0.95", False), ("min(score) < 0.2", True), ("mean(score) == 0.5", True),
        ("sum(score) > 2", False), ("one == 3", True), ("one != 3", False), ("rows(score) == 1", True),
        ("rows(texts) > 1", True), ('text == "de"', True), ("text != 'de'", False), ('any(texts) == "fr"', True),
        ('all(texts) == "fr"', False), ("flag == true", True), ("flag == false", False), ("score", True), ("nothing", False),
        ("not nothing", True), ("not not score", True), ("nothing > 1", False), ("one > 1 and one < 5", True),
        ("one > 5 or one == 3", True), ("one > 5 or one == 3 and one < 2", False), ('text == "a and b"', False),
        ('text == "a" or text == "de"', True), ("max(empty) > 0", False), ("any(score) > 0.8", True), ("all(score) > 0.8", False),
    ],
)  # fmt: skip
def test_a_condition_holds_as_it_reads(text: str, holds: bool) -> None:
    assert conditions.read(text).holds(VALUES) is holds


@pytest.mark.parametrize("text", ["score > 1", "text > 1", 'one == "x"', "max(text) == 'a'"])
def test_what_cannot_be_compared_says_so(text: str) -> None:
    with pytest.raises(InvalidInput, match="condition compares"):
        conditions.read(text).holds(VALUES)


@pytest.mark.parametrize("text", ["", "max(score)", "one >", "one == abc", "__import__('os')", "1 < one", "a" * 2000])
def test_what_is_no_condition_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(InvalidInput):
        conditions.read(text)


DOCUMENT = json.loads("""{
  "name": {"first": "Tom", "last": "Anderson"}, "age": 37, "children": ["Sara", "Alex", "Jack"],
  "fav.movie": "Deer Hunter", "nothing": null, "ok": true, "predictions": [],
  "friends": [
    {"first": "Dale", "last": "Murphy", "age": 44, "nets": ["ig", "fb", "tw"]},
    {"first": "Roger", "last": "Craig", "age": 68, "nets": ["fb", "tw"]},
    {"first": "Jane", "last": "Murphy", "age": 47, "nets": ["ig", "tw"]}
  ]
}""")

MISSING = object()


@pytest.mark.parametrize(
    ("path", "value"),
    # Source: the examples of https://github.com/tidwall/gjson/blob/master/SYNTAX.md
    [
        ("name.last", "Anderson"), ("name.first", "Tom"), ("age", 37), ("children.0", "Sara"), ("children.1", "Alex"),
        ("friends.1.first", "Roger"), ("child*.2", "Jack"), ("c?ildren.0", "Sara"), ("fav\\.movie", "Deer Hunter"),
        ("friends.#", 3), ("friends.#.age", [44, 68, 47]), ('friends.#(last=="Murphy").first', "Dale"),
        ('friends.#(last=="Murphy")#.first', ["Dale", "Jane"]), ("friends.#(age>45)#.last", ["Craig", "Murphy"]),
        ('friends.#(first%"D*").last', "Murphy"), ('friends.#(first!%"D*").last', "Craig"), ('children.#(!%"*a*")', "Alex"),
        ('children.#(%"*a*")#', ["Sara", "Jack"]), ('friends.#(nets.#(=="fb"))#.first', ["Dale", "Roger"]),
        ('friends.#(last="Murphy")#.first', ["Dale", "Jane"]), ("friends|1|first", "Roger"),
        ('friends.#(last="Murphy")#|first', MISSING), ('friends.#(last="Murphy")#|0.first', "Dale"),
        ("friends.#(age>100)#", []), ("friends.#(age>100)", MISSING), ("nothing", None), ("nothing.more", MISSING),
        ("predictions.0", MISSING), ("children.3", MISSING), ("age.0", MISSING), ("friends.#(nets)#.first", ["Dale", "Roger", "Jane"]),
        ('[@this].#(name.first=="Tom").age', 37), ('[@this].#(name.first=="Bob")', MISSING), ("@this.age", 37),
        ("[age,name.first]", [37, "Tom"]), ("[@this].#(ok==true).age", 37), ("[@this].#(ok==~true).age", 37),
        ("[@this].#(nothing==~null).age", 37), ("[@this].#(gone==~null).age", 37), ("[@this].#(gone==~*).age", MISSING),
        ("[@this].#(age==37).ok", True), ("[@this].#(age>=37.5).ok", MISSING), ("#", MISSING), ("children.#", 3),
    ],
)  # fmt: skip
def test_gjson_paths_give_what_gjson_gives(path: str, value: object) -> None:
    read = gjson.read(path)
    assert read.get(DOCUMENT, MISSING) == value
    assert read.exists(DOCUMENT) is (value is not MISSING)


@pytest.mark.parametrize(
    "path", ["", "a.", "#(", "a.#(b==)", "@reverse", "{a}", "!x", "a.#()", "[a", "x" * 3000, "#(" * 40 + ")" * 40]
)
def test_paths_that_have_no_meaning_here_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        gjson.read(path)


WILD = st.text("ab*?", max_size=8)


@given(WILD, st.text("ab", max_size=12))
def test_wildcards_match_as_one_expression_would(pattern: str, text: str) -> None:
    whole = re.compile("".join({"*": ".*", "?": "."}.get(each, each) for each in pattern), re.DOTALL)
    read = gjson.read(f'#(name%"{pattern}x")')
    assert read.exists([{"name": f"{text}x"}]) is (whole.fullmatch(text) is not None)


@pytest.mark.parametrize("path", ["*a*a*a*a*b", '[@this].#(text%"*a*a*?a*a*b")', '[@this].#(text%"*a?a*b")'])
def test_wildcards_hold_nobody_up_whatever_a_client_sends(path: str) -> None:
    began = time.thread_time()
    assert not gjson.read(path).exists({"a" * 200: 1, "text": "a" * 100_000})
    assert time.thread_time() - began < 1.0
