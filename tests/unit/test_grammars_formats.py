"""Patterns, choices, users' grammars, tool calls, the cache and masks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penstock.core.errors import InvalidInput, ServableError
from penstock.core.language import Format, Tool
from penstock.language.grammars import HERMES, MISTRAL, PLAIN_LIST, Compiled, Compiler, ToolFormat
from penstock.language.grammars.masker import Masker, TokenTable, byte_table, matches

TABLE = byte_table()
WEATHER = Tool(
    "weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    strict=True,
)
TIME = Tool("time")


def compiled(kind: str, text: str = "", choices: tuple[str, ...] = ()) -> Compiled:
    found = Compiler().compile_format(Format(kind, text=text, choices=choices))  # type: ignore[arg-type]
    assert found is not None
    return found


def check(found: Compiled, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert matches(found, text, TABLE), text
    for text in bad:
        assert not matches(found, text, TABLE), text


def test_a_pattern_is_the_whole_text_and_comes_as_a_pattern_too() -> None:
    found = compiled("regex", r"(19|20)\d\d(-\w+)?")
    check(found, ["1999", "2024-ab_1"], ["99", "1999-", "x1999"])
    assert found.regex is not None and found.grammar is not None and found.grammar.kind == "ebnf"
    found.check("1999")
    with pytest.raises(ServableError):
        found.check("99")


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("[^\\d\\s]{2}", "aé", "a1"), ("a{2,}?b", "aaab", "ab"), ("\\u00e9\\x41\\u{1F600}", "éA😀", "e"), ("(?<n>a)|", "", "b"),
        ("[\\]\\-a]+", "a-]", "b"), ("a{,2}", "a{,2}", "aa"), (".", "é", "\n"), ("^(a|b)$", "a", "^a"), ("(?:a*)*b", "aab", "a"),
        ("[a-]", "-", "b"), ("\\.\\/\\(", "./(", "a/("), ("a{70,140}", "a" * 140, "a" * 141), ("\\ud83d\\ude00", "😀", "a"),
    ],
)  # fmt: skip
def test_what_patterns_mean(pattern: str, good: str, bad: str) -> None:
    check(compiled("regex", pattern), [good], [bad])


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("(?=a)", "look-around"), ("(?<!a)b", "look-around"), ("(a)\\1", "back-references"), ("\\bа", "word boundaries"),
        ("(?i)a", "not supported"), ("\\p{L}", "Unicode properties"), ("a**", "quantifier"), ("(a", "without its"), ("a)", "without its"),
        ("[a", "without its"), ("[z-a]", "backwards"), ("*a", "anything to repeat"), ("a^", "`^`"), ("$a", "`$`"), ("\\", "at the end"),
        ("\\q", "not a known escape"), ("\\ud83d", "surrogate"), ("(" * 200 + ")" * 200, "deep"), ("a{99999999}", "too large"),
    ],
)  # fmt: skip
def test_what_patterns_cannot_say_is_refused_by_name(pattern: str, word: str) -> None:
    with pytest.raises(InvalidInput, match=r"structured_outputs\.regex") as error:
        compiled("regex", pattern)
    assert word in error.value.message


def test_choices_are_texts() -> None:
    found = compiled("choice", choices=("yes", 'no"\n', "yes!"))
    check(found, ["yes", 'no"\n', "yes!"], ["no", "ye"])
    found.check("yes!")
    with pytest.raises(ServableError):
        found.check("maybe")
    with pytest.raises(InvalidInput):
        compiled("choice")


def test_users_grammars_are_read_and_written_anew() -> None:
    found = compiled("ebnf", 'root ::= my_rule+ # more\nmy_rule ::= ( "a" |\n "\\x62" [^c-\\u0064]{2,3} )? "\\n"\n')
    check(found, ["a\n", "\n\n", "bxy\n", "bxyza\n"[:4] + "\n"], ["", "a", "bc\n", "bxyzq\n"])
    check(compiled("ebnf", 'root ::= ("a"? "b"?)* c\nc ::= "c"?'), ["", "abba", "ac", "bbc"], ["cc"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('root ::= root "a" | "b"', "left recursion"), ('root ::= a\na ::= "x"? b\nb ::= a', "left recursion"), ("root ::= x", "not defined"),
        ('x ::= "a"', "no rule `root`"), ('root ::= "a', "closing quote"), ("root ::= [z-a]", "backwards"), ('root ::= ("a"', "without its"),
        ('root ::= "a"\nroot ::= "b"', "twice"), ("root ::= TagDispatch(1)", "macros"), ('root ::= "\\q"', "escape"), ("root = 1", "::="),
        ('root ::= "a" root', "never end"), ("", "no rule `root`"),
    ],
)  # fmt: skip
def test_faulty_grammars_are_refused_with_what_is_wrong(text: str, word: str) -> None:
    with pytest.raises(InvalidInput, match=r"structured_outputs\.grammar") as error:
        compiled("ebnf", text)
    assert word in error.value.message


def test_lark_grammars_are_translated() -> None:
    text = """
    %import common.INT
    // a list of things
    start: "[" item ("," item)* "]"
    ?item: INT
        | /[a-c]+/ "!"i~2..3  -> word
        | [SIGN] "x".."z"
    SIGN: "+" | "-"
    """
    check(compiled("lark", text), ["[12]", "[ab!!,x,-y]"], ["[]", "[ab!]", "[w]", "[12,]"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('start: "a"\n%ignore " "', "%ignore"), ('a: "a"', "no rule `start`"), ("start: b", "not defined"), ('start: start "a"', "left recursion"),
        ("start: /a/i", "flags"), ("%import common.NOPE\nstart: NOPE", "NOPE"), ('start.2: "a"', "priorities"), ('start: ("a"', "closed"),
    ],
)  # fmt: skip
def test_what_lark_grammars_cannot_have_is_refused(text: str, word: str) -> None:
    with pytest.raises(InvalidInput) as error:
        compiled("lark", text)
    assert word in error.value.message


def calls(tools: list[Tool], choice: str, **more: object) -> Compiled:
    found = Compiler().compile_format(Format(), tools, choice, **more)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_required_call_is_one_of_the_tools_with_arguments_by_its_schema() -> None:
    found = calls([WEATHER, TIME], "required")
    good = ['{"name":"weather","arguments":{"city":"Oslo"}}', '{"name":"time","arguments":{}}']
    check(
        found,
        good,
        [
            '{"name":"weather","arguments":{}}',
            '{"name":"other","arguments":{}}',
            '{"name":"time","arguments":{"a":1}}',
            "text",
        ],
    )
    assert found.always_json
    check(calls([WEATHER, TIME], "=time"), good[1:], good[:1])


def test_calls_are_in_the_model_s_own_format_and_several_when_they_may_be() -> None:
    one = '<tool_call>\n{"name":"time","arguments":{}}\n</tool_call>'
    check(calls([TIME], "required", tool_format=HERMES), [one, f"{one}\n{one}"], [f"{one}{one}", one[1:]])
    check(calls([TIME], "required", tool_format=HERMES, parallel=False), [one], [f"{one}\n{one}"])
    check(
        calls([TIME], "required", tool_format=MISTRAL),
        ['[TOOL_CALLS][{"name":"time","arguments":{}}]'],
        ["[TOOL_CALLS][]"],
    )
    check(
        calls([TIME], "required", tool_format=PLAIN_LIST),
        ['[{"name":"time","arguments":{}},{"name":"time","arguments":{}}]'],
        ["[]"],
    )
    named = ToolFormat(begin="<function=", middle=">", end="</function>", layout="name_first")
    check(calls([TIME], "required", tool_format=named), ["<function=time>{}</function>"], ["<function=x>{}</function>"])


def test_with_auto_the_output_is_free_and_arguments_are_validated() -> None:
    found = calls([WEATHER], "auto")
    assert found.grammar is None
    found.check_call("weather", '{"city":"Oslo"}')
    for name, arguments in (("weather", "{}"), ("weather", "{"), ("other", "{}")):
        with pytest.raises(ServableError):
            found.check_call(name, arguments)


def test_faults_in_tools_are_named() -> None:
    for tools, choice, word in (
        ([WEATHER], "=wether", "did you mean 'weather'"), ([], "required", "no tools"), ([TIME, TIME], "required", "same name"),
        ([Tool("f", parameters={"properties": {"a": {"if": {}}}})], "auto", "tools[0].function.parameters.properties.a.if"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput) as error:
            calls(tools, choice)
        assert word in error.value.message


def test_text_needs_no_grammar_and_tools_that_may_not_be_called_neither() -> None:
    assert Compiler().compile_format(Format()) is None
    assert Compiler().compile_format(Format(), [TIME], "none") is None


def test_the_cache_keeps_the_last_ones_within_entries_and_bytes() -> None:
    compiler = Compiler(entries=2)
    first = compiler.compile_format(Format("choice", choices=("a",)))
    assert compiler.compile_format(Format("choice", choices=("a",))) is first
    for text in "bc":
        compiler.compile_format(Format("choice", choices=(text,)))
    assert compiler.compile_format(Format("choice", choices=("a",))) is not first
    small = Compiler(most_bytes=3000)
    kept = small.compile_format(Format("choice", choices=("a",)))
    small.compile_format(Format("choice", choices=("b" * 3000,)))
    assert small.compile_format(Format("choice", choices=("a",))) is not kept


def test_the_order_of_properties_is_part_of_what_is_remembered() -> None:
    compiler, ways = Compiler(), []
    for names in ("ab", "ba"):
        schema = {"properties": {name: {"type": "null"} for name in names}, "required": ["a", "b"]}
        found = compiler.compile_format(Format("json_schema", schema=schema))
        assert found is not None
        ways.append(matches(found, '{"a":null,"b":null}', TABLE))
    assert ways == [True, False]


def test_a_mask_has_the_tokens_that_may_come_next() -> None:
    pieces = [b"<end>", b"{", b'{"', b'"a"', b":", b"1", b"12", b"}", b"1}", b"x", b'{"a":']
    table = TokenTable(pieces, [0], [0])
    schema = {"properties": {"a": {"type": "integer", "maximum": 1, "minimum": 0}}, "required": ["a"]}
    found = Compiler().compile_format(Format("json_schema", schema=schema))
    assert found is not None
    masker = Masker(found, table)

    def allowed(mask: np.ndarray) -> set[int]:
        return {at for at in range(len(pieces)) if mask[at // 32] >> (at % 32) & 1}

    assert allowed(masker.mask()) == {1, 2, 10}
    assert masker.advance(1) and not masker.advance(9)
    assert allowed(masker.mask_after([3, 4])) == {5, 8}
    other = masker.copy()
    assert allowed(other.mask_after([8])) == {0} and other.may_end and other.must_end
    assert allowed(masker.mask_after([5])) == {7} and not masker.may_end
    with pytest.raises(InvalidInput):
        masker.mask_after([5])


def test_masks_follow_recursive_schemas_character_by_character_where_tokens_could_be_cut() -> None:
    schema = {
        "anyOf": [
            {"type": "array", "items": {"$ref": "#"}},
            {"type": "string", "pattern": "^a+$", "maxLength": 3},
            {"type": "string", "maxLength": 1},
        ]
    }
    found = Compiler().compile_format(Format("json_schema", schema=schema))
    assert found is not None
    check(found, ['["a",["aaa","b"]]', '""'], ['"bb"', '["aaaa"]'])
    for text in ('["a",["aaa","b"]]', '""'):
        assert json.loads(text) is not None
