"""Repetitions inside repetitions: the same texts, by one way each."""

from __future__ import annotations

import itertools
import re

import pytest

from penstock.language.grammars import Limits, automaton, pattern
from penstock.language.grammars.nodes import Rules
from penstock.language.grammars.untangling import tangled, untangled

TEXTS = ["".join(text) for length in range(8) for text in itertools.product("ab ", repeat=length)]


@pytest.mark.parametrize(
    "written",
    [
        "(a{0,2}){0,2}", "(a{1,2}){2,3}", "(a{2,3}){1,2}", "(a? ?b?){1,2}", "(((a?b?)?){0,2}){0,2}",
        "(a*)+", "((a|b){0,2} ){0,2}", "a(b{1,2} ?){2}", "(a{2}){0,3}",
    ],
)  # fmt: skip
def test_the_texts_stay_the_same(written: str) -> None:
    rules = Rules(Limits(), "pattern")
    node = pattern.read(written, rules, "pattern")
    made = untangled(node, rules)
    found = automaton.build(made, rules)
    for text in TEXTS:
        assert found.matches(text) == bool(re.fullmatch(written, text)), text


@pytest.mark.parametrize("written", ["(([a-z]+)? ?([a-z]+)?){1,300}", "([a-z ]{0,60}){0,60}"])
def test_nothing_is_left_to_try(written: str) -> None:
    rules = Rules(Limits(), "pattern")
    node = pattern.read(written, rules, "pattern")
    assert tangled(node, rules)
    assert not tangled(untangled(node, rules), rules)
