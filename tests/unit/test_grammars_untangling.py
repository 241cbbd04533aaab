"""Grammars that can be read in very many ways at once: made the same texts by few ways, or refused."""

from __future__ import annotations

import itertools
import re

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.language import Format
from penstock.language.grammars import Compiler, Limits, gbnf, pattern
from penstock.language.grammars.emptiness import without_empty_repeats
from penstock.language.grammars.gbnf_reading import read
from penstock.language.grammars.nodes import Node, Rules
from penstock.language.grammars.untangling import untangled
from penstock.language.grammars.ways import Found, Pushdown, ways

TEXTS = ["".join(text) for length in range(8) for text in itertools.product("ab ", repeat=length)]
JSON = r"""
root ::= object
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
value ::= object | array | string | number | ("true" | "false" | "null") ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]*)) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= ([ \t\n] ws)?
"""


def found(rules: Rules, root: Node) -> Found:
    return ways(without_empty_repeats(gbnf.productive(rules, root)))


@pytest.mark.parametrize(
    "written",
    [
        "(a|[ab])*b", "((a?b?)*a?){1,30}", "(([ab]+)? ?([ab]+)?){1,60}", "([ab]{1,9} ?){0,9}", "(a*)*", "(a|a)*",
        "([ab]{0,90}){0,90}", "([ab]*[b ]*){2,30}a", "(.*a){3}.*",
    ],
)  # fmt: skip
def test_the_texts_stay_the_same_and_few_ways_are_left(written: str) -> None:
    rules = Rules(Limits(), "pattern")
    node = pattern.read(written, rules, "pattern")
    made, root = untangled(rules, node)
    assert not found(made, root).too_many
    one = Pushdown(without_empty_repeats(gbnf.productive(made, root)))
    for text in TEXTS:
        assert one.matches(text) == bool(re.fullmatch(written, text)), text


def test_what_callers_tangle_is_refused_or_made_few_ways() -> None:
    refused = ["[a-z]*a[a-z]{300}", "([a-z]{1,300} ?){1,300}"]
    kept = ["(a?){50}a{50}", "([a-z]?){50}[a-z]{50}", "(([a-z]+)? ?([a-z]+)?){1,60}", "(.*a){5}.*"]
    for written in refused + kept:
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": f"^{written}$"}}}
        for asked in (Format("regex", text=written), Format("json_schema", schema=schema)):
            try:
                Compiler().compile_format(asked, where="guided")
                assert written in kept
            except InvalidInput as error:
                assert written in refused, written
                assert error.message.startswith("guided: a text can be read in too many ways at once")


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" root "b" | "a" root | "a"\n',  # a way for each letter to be closed or not
        'root ::= s\ns ::= "a" t | "a"\nt ::= s s | s\n',  # S S | "a", without left recursion
        'root ::= [ ] root | [ \\t] root | "x"\n',
        'root ::= "x"{0,40} "(" big ")"\nbig ::= [a-z ] big big | [a-z ] big | "."\n',
    ],
)
def test_what_contains_itself_in_many_ways_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"structured_outputs\.grammar: a text can be read in too many ways"):
        Compiler().compile_format(Format("ebnf", text=text))


def test_parts_without_recursion_are_made_few_ways_where_others_have_it() -> None:
    text = 'root ::= "(" (w? " "? w?){1,30} root ")" | "x"\nw ::= [a-z]+\n'
    rules, root = read(text, Limits(), "grammar")
    assert found(rules, root).too_many
    assert not found(*untangled(rules, root)).too_many


@pytest.mark.parametrize(
    "text",
    [
        JSON, 'root ::= expr\nexpr ::= term (("+" | "-") term)*\nterm ::= [0-9]+ | "(" expr ")"\n',
        'root ::= "a" root root | "b"\n', 'root ::= [a-z]{1,2000}\n', 'root ::= ([A-Z] [a-z]* [ ,.])*\n',
    ],
)  # fmt: skip
def test_what_has_few_ways_stays_as_it_is(text: str) -> None:
    rules, root = read(text, Limits(), "grammar")
    assert untangled(rules, root) == (rules, root)


def test_large_schemas_are_not_taken_for_tangled() -> None:
    union = {"anyOf": [{"type": "object", "properties": {"kind": {"const": f"k{at}"}, "x": {"type": "string"}},
                        "required": ["kind", "x"]} for at in range(200)]}  # fmt: skip
    wide = {"type": "object", "properties": {f"p{at}": {"type": "string", "maxLength": 50} for at in range(200)}}
    many = {"enum": [f"value-{at * 7919 % 100_003}" for at in range(3000)]}
    alike = {"type": "array", "items": {"anyOf": [
        {"type": "object", "properties": {"x": {"type": "string"}, f"k{at}": {"type": "integer"}},
         "required": ["x", f"k{at}"]} for at in range(30)]}}  # fmt: skip
    for schema in (union, wide, many, alike):
        Compiler().compile_format(Format("json_schema", schema=schema))
