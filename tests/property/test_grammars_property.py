"""Grammars and schemas say the same: what a grammar makes is valid, and what is valid (as it is written) is taken.

The judge of schemas is jsonschema, that of texts llguidance, which reads the same grammar in another dialect.
"""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from grammar_samples import NoValue, TooLong, compact, sample, value, whole_schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.errors import InvalidInput, ServableError
from penstock.core.language import Format
from penstock.language.grammars import Compiler, Limits, gbnf_reading
from penstock.language.grammars.masker import byte_table, matches

COMPILER = Compiler()
TABLE = byte_table()
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def check_schema(seed: int, depth: int = 3) -> None:
    """One random schema, both ways."""
    rng = random.Random(seed)
    schema = whole_schema(rng, depth)
    try:
        compiled = COMPILER.compile_format(Format("json_schema", schema=schema))
    except InvalidInput as error:
        assert "nothing can match" in str(error), (seed, schema)
        return
    assert compiled is not None and compiled.grammar is not None
    oracle = jsonschema.Draft202012Validator(schema, format_checker=None)
    rules, root = gbnf_reading.read(compiled.grammar.text, Limits(), "grammar")
    bodies = dict(rules.bodies)
    for _ in range(6):
        try:
            text = sample(rng, bodies, root, [300])
        except TooLong:
            continue
        made = json.loads(text)
        assert oracle.is_valid(made) or compiled.validated, (seed, schema, text, next(oracle.iter_errors(made)).message)
        try:
            compiled.check(text)
        except ServableError:
            assert compiled.validated, (seed, schema, text)
        assert matches(compiled, text, TABLE), (seed, schema, text)
    for _ in range(6):
        try:
            instance = value(rng, schema, schema)
        except NoValue:
            continue
        if oracle.is_valid(instance) and abs(_largest(instance)) < 1e15:
            text = compact(instance)
            compiled.check(text)
            assert matches(compiled, text, TABLE), (seed, schema, text, compiled.grammar.text)


def _largest(found: object) -> float:
    """The number with the most digits inside: beyond 15 of them grammars are narrower than schemas."""
    if isinstance(found, dict):
        return max(map(_largest, found.values()), default=0)
    if isinstance(found, list):
        return max(map(_largest, found), default=0)
    return abs(found) if isinstance(found, int | float) else 0


@FEW
@given(st.integers(0, 2**32))
def test_a_schema_s_grammar_makes_valid_values_and_takes_all_of_them(seed: int) -> None:
    check_schema(seed)


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
def test_thousands_of_schemas() -> None:
    for seed in range(5000):
        check_schema(seed, depth=2 + seed % 3)


PIECES = st.sampled_from(
    ["a", "b", "[ab]", "[^a]", ".", "\\d", "\\w", "x?", "(a|bc)", "(?:ab)*", "a{2,3}", "b+", "é", "\\.", '"', "\\\\"]
)


@FEW
@given(st.lists(PIECES, min_size=1, max_size=5).map("".join), st.integers(0, 2**32))
def test_a_pattern_s_grammar_makes_what_the_pattern_matches(pattern: str, seed: int) -> None:
    rng = random.Random(seed)
    compiled = COMPILER.compile_format(Format("regex", text=pattern))
    assert compiled is not None and compiled.grammar is not None
    rules, root = gbnf_reading.read(compiled.grammar.text, Limits(), "grammar")
    for _ in range(4):
        text = sample(rng, dict(rules.bodies), root, [60])
        assert re.fullmatch(pattern, text, re.ASCII), (pattern, text)
        assert compiled.regex is None or re.fullmatch(compiled.regex.text, text, re.ASCII), compiled.regex
        compiled.check(text)
        assert matches(compiled, text, TABLE), (pattern, text)
    for _ in range(6):
        text = "".join(rng.choices('abcx1é.\\"', k=rng.randint(0, 6)))
        assert matches(compiled, text, TABLE) == bool(re.fullmatch(pattern, text, re.ASCII)), (pattern, text)


@FEW
@given(st.integers(-(10**7), 10**7), st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_integers_within_bounds_are_exact(low: int, width: int, of: int, data: st.DataObject) -> None:
    high = low + width
    schema = {"type": "integer", "minimum": low, "maximum": high, "multipleOf": of}
    try:
        compiled = COMPILER.compile_format(Format("json_schema", schema=schema))
    except InvalidInput:
        assert not any(number % of == 0 for number in range(low, min(high, low + of) + 1))
        return
    assert compiled is not None and not compiled.validated
    for number in (low, high, low - 1, high + 1, data.draw(st.integers(low - 20, high + 20)), -low, 0):
        assert matches(compiled, str(number), TABLE) == (low <= number <= high and number % of == 0), number


@FEW
@given(st.decimals(-1000, 1000, places=3), st.decimals(0, 50, places=3), st.booleans(), st.booleans(), st.data())
def test_decimals_within_bounds_are_exact(low, width, low_open, high_open, data) -> None:
    low, high = float(low), round(float(low) + float(width), 3)
    schema = {"type": "number", "exclusiveMinimum" if low_open else "minimum": low,
              "exclusiveMaximum" if high_open else "maximum": high}  # fmt: skip
    oracle = jsonschema.Draft202012Validator(schema)
    try:
        compiled = COMPILER.compile_format(Format("json_schema", schema=schema))
    except InvalidInput:
        assert low >= high
        return
    assert compiled is not None and not compiled.validated
    for number in (low, high, data.draw(st.decimals(-1100, 1100, places=4)), low + 0.0004, high - 0.0004):
        number = round(float(number), 4)
        text = f"{number:.4f}".rstrip("0").rstrip(".")
        if text == "-0" or number == 0:
            text = "0"
        assert matches(compiled, text, TABLE) == oracle.is_valid(json.loads(text)), (schema, text)
