"""Automata of patterns match what the patterns match: alone, both of two, and one without the other."""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.language.grammars import Limits, automaton, pattern
from penstock.language.grammars.nodes import Rules

TEXTS = ["".join(text) for length in range(6) for text in itertools.product("abcé", repeat=length)]
SETS = ["a", "[a-c]", "[^b]", "[acé]", "[b-é]", "[^a-b]", "."]
PATTERNS = st.recursive(
    st.sampled_from(SETS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda items: f"(?:{'|'.join(items)})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{1,3}", "{0,2}", "{2,}"])).map("(?:{0[0]}){0[1]}".format),
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(PATTERNS, PATTERNS)
def test_automata_match_what_their_patterns_match(one: str, other: str) -> None:
    rules = Rules(Limits(), "pattern")
    first, second = (automaton.build(pattern.read(text, rules, "pattern"), rules) for text in (one, other))
    both, without = automaton.both(first, second, rules), automaton.without(first, second, rules)
    for found in (first, second, both, without):
        for edges in found.edges:
            assert all(before[1] < after[0] for before, after in itertools.pairwise(edges)), "sorted, and none twice"
    for text in TEXTS:
        matched = re.fullmatch(one, text) is not None, re.fullmatch(other, text) is not None
        assert (first.matches(text), second.matches(text)) == matched, text
        assert both.matches(text) == all(matched) and without.matches(text) == (matched[0] and not matched[1]), text
