"""Which texts a schema's grammar takes, which keywords are validated instead, and which are refused by name."""

from __future__ import annotations

import pytest

from penstock.core.errors import InvalidInput, ServableError
from penstock.core.language import Format
from penstock.language.grammars import Compiled, Compiler, Limits
from penstock.language.grammars.masker import byte_table, matches

TABLE = byte_table()


def compiled(schema: object, compiler: Compiler | None = None) -> Compiled:
    found = (compiler or Compiler()).compile_format(Format("json_schema", schema=schema))
    assert found is not None
    return found


def check(schema: object, good: list[str], bad: list[str]) -> Compiled:
    found = compiled(schema)
    for text in good:
        found.check(text)
        assert matches(found, text, TABLE), text
    for text in bad:
        assert not matches(found, text, TABLE), text
    return found


def refused(schema: object, *words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        compiled(schema)
    for word in ("response_format.json_schema.schema", *words):
        assert word in error.value.message


def test_properties_come_in_their_order_and_optional_ones_may_be_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
              "required": ["b"], "additionalProperties": False}  # fmt: skip
    good = ['{"b":true}', '{"a":null,"b":true}', '{"a":null,"b":false,"c":null}', '{"b":true,"c":null}']
    bad = ["{}", '{"b":true,"a":null}', '{"b":true,}', '{,"b":true}', '{ "b":true}', '{"a":null}', '{"b":true,"d":1}']
    check(schema, good, bad)


def test_without_additional_properties_an_object_with_properties_is_closed_and_one_without_is_open() -> None:
    check({"type": "object", "properties": {"a": {"type": "null"}}}, ["{}", '{"a":null}'], ['{"z":1}'])
    check({"type": "object"}, ["{}", '{"z":[1,{"q":null}]}'], ["[]"])


def test_other_keys_are_never_the_known_ones() -> None:
    schema = {
        "properties": {"a": {"type": "integer"}, "ab": {"type": "integer"}},
        "additionalProperties": {"type": "null"},
    }
    good = ['{"a":1,"b":null}', '{"aa":null}', '{"abc":null,"":null}', '{"\\"":null}']
    check(schema, good, ['{"a":null}', '{"ab":null}', '{"\\u0061":null}', '{"b":1}'])


def test_counts_of_properties_are_kept() -> None:
    schema = {"properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}, "minProperties": 2,
              "additionalProperties": False}  # fmt: skip
    check(schema, ['{"a":null,"c":null}', '{"a":null,"b":null,"c":null}'], ['{"a":null}', "{}"])
    check(schema | {"minProperties": 0, "maxProperties": 1}, ["{}", '{"b":null}'], ['{"a":null,"b":null}'])


def test_pattern_properties_are_exact_for_new_keys_and_for_known_ones() -> None:
    schema = {
        "properties": {"k1": {"minimum": 5}},
        "patternProperties": {"^k": {"type": "integer"}},
        "additionalProperties": False,
    }
    check(schema, ['{"k1":7,"k2":1}', '{"kx":0}'], ['{"k1":4}', '{"x":1}', '{"k2":"a"}'])


def test_a_schema_may_contain_itself() -> None:
    schema = {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/n"}}, "required": ["v"]}},
    }
    check(schema, ['{"v":1}', '{"v":1,"next":{"v":2,"next":{"v":-3}}}'], ['{"v":1,"next":{}}'])
    check({"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]}, ["[[],null,[[null]]]"], ["[1]"])


def test_escaped_pointers_and_anchors_are_followed_and_nothing_is_fetched() -> None:
    check({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, ["1"], ["2"])
    check({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": 1}}}, ["1"], ["2"])
    refused({"$ref": "https://example.org/schema"}, "$ref", "outside of this schema")
    refused({"$ref": "#/$defs/missing"}, "points at nothing")


def test_what_contradicts_itself_or_never_ends_is_refused() -> None:
    refused({"$ref": "#"}, "nothing can match")
    refused({"allOf": [{"$ref": "#"}]}, "circle")
    refused({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "nothing can match")
    refused({"type": "integer", "minimum": 5, "maximum": 4}, "nothing can match")
    refused({"allOf": [{"type": "string"}, {"type": "null"}]}, "nothing can match")
    refused(False, "nothing can match")


def test_all_of_is_both_at_once() -> None:
    schema = {
        "allOf": [
            {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 3}, "b": {"type": "null"}}},
        ]
    }
    check(schema, ['{"a":3}', '{"a":12,"b":null}'], ['{"a":2}', "{}"])
    check({"anyOf": [{"minimum": 5}, {"maximum": 2}], "type": "integer"}, ["5", "2"], ["3", '"a"'])
    check(
        {"allOf": [{"pattern": "^a"}, {"pattern": "z$"}], "type": "string", "maxLength": 3},
        ['"az"', '"abz"'],
        ['"a"', '"abcz"'],
    )
    check({"allOf": [{"items": {"type": "integer"}}, {"prefixItems": [{"minimum": 3}]}]}, ["[3,1]", "[]"], ["[2]"])


def test_one_of_that_may_overlap_is_validated_and_one_that_cannot_is_not() -> None:
    overlapping = compiled({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]})
    assert overlapping.validated == ("oneOf",)
    with pytest.raises(ServableError, match="valid under each"):
        overlapping.check("3")
    apart = [{"properties": {"t": {"const": name}}, "required": ["t"], "type": "object"} for name in "ab"]
    assert compiled({"oneOf": apart}).validated == ()


def test_enum_keeps_what_the_other_keywords_allow() -> None:
    check({"enum": [1, 2, "a", None], "type": "integer", "minimum": 2}, ["2"], ["1", '"a"', "null"])
    check({"const": {"a": [1, 'é\n"']}}, ['{"a":[1,"é\\n\\""]}'], ["{}"])
    check({"enum": [1, True]}, ["1", "true"], ["1.0"])


def test_numbers_have_one_form_and_bounds() -> None:
    check({"type": "integer"}, ["0", "-1", "12"], ["01", "-", "1.0", "+1", "1" * 40])
    check({"type": "number"}, ["0", "-0.5", "1e5", "2.5E-3"], [".5", "1.", "01", "1e", "NaN", "1e999"])
    check({"type": "number", "minimum": -0.5, "exclusiveMaximum": 2}, ["-0.5", "0", "1.999"], ["-0.51", "2", "2.0"])
    check({"type": "integer", "multipleOf": 7, "minimum": 0}, ["0", "7", "49"], ["8", "-7"])
    assert compiled({"type": "number", "multipleOf": 0.01}).validated == ("multipleOf",)
    compiled({"type": "number", "multipleOf": 0.01}).check("0.07")


def test_lengths_count_characters_not_bytes_or_escapes() -> None:
    check(
        {"type": "string", "minLength": 2, "maxLength": 2},
        ['"é日"', '"\\n\\u00e9"', '"😀\\ud83d\\ude00"'],
        ['"a"', '"abc"', '"\\ud83d"'],
    )
    check(
        {"type": "string", "minLength": 200, "maxLength": 1000},
        [f'"{"a" * 200}"', f'"{"é" * 1000}"'],
        [f'"{"a" * 199}"', f'"{"a" * 1001}"'],
    )


def test_control_characters_are_escaped() -> None:
    check({"type": "string"}, ['"\\u0001"', '"\x7f"'], ['"\x01"', '"\n"', '"\\x"', '"a'])
    check({"type": "string", "pattern": '^[\\x00-\\x1f"\\\\]+$'}, ['"\\u0001\\n\\"\\\\\\u001f"'], ['"a"', '"\n"'])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"), ("date", "1999-12-31", "1999-13-01"), ("time", "23:59:59Z", "24:00:00Z"),
        ("date-time", "2000-02-29T00:00:00.5+01:00", "1900-02-29T00:00:00Z"), ("ipv4", "255.0.10.1", "256.0.0.1"),
        ("ipv6", "fe80::1", "1::2::3"), ("ipv6", "1:2:3:4:5:6:7:8", "1:2:3"), ("email", "a.b+c@d.org", "a@b"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"), ("duration", "P1DT2H", "P"),
        ("hostname", "a-b.example", "-a"), ("uri", "https://a.b/c?d#e", "a b"),
    ],
)  # fmt: skip
def test_formats_are_exact(name: str, good: str, bad: str) -> None:
    found = check({"type": "string", "format": name}, [f'"{good}"'], [f'"{bad}"'])
    with pytest.raises(ServableError, match=name):
        found.check(f'"{bad}"')


def test_draft_7_tuples_and_nullable_are_understood() -> None:
    schema = {"items": [{"type": "boolean"}, {"type": "null"}], "additionalItems": False, "minItems": 1}
    check(schema, ["[true]", "[true,null]"], ["[]", "[true,null,1]", "[null]"])
    check({"type": "string", "nullable": True, "maxLength": 1}, ["null", '"a"'], ['"ab"', "1"])


def test_arrays_count_their_items() -> None:
    check(
        {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 3},
        ["[1,1]", "[1,1,1]"],
        ["[1]", "[]", "[1,1,1,1]", "[1,1,]"],
    )
    check(
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 3},
        ["[1,2,3]", "[1,2,3,3]"],
        ["[1,2]", "[1,3,3]"],
    )
    check({"type": "array", "items": False}, ["[]"], ["[1]"])
    check(
        {"type": "array", "items": {"const": 1}, "maxItems": 300},
        ["[" + ",".join("1" * 300) + "]"],
        ["[" + ",".join("1" * 301) + "]"],
    )


@pytest.mark.parametrize(
    ("schema", "bad"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1,1]"),
        ({"type": "integer", "not": {"const": 5}}, "5"),
        ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}}, "[2]"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, '{"a":1}'),
        ({"type": "object", "propertyNames": {"maxLength": 1}}, '{"ab":1}'),
    ],
)
def test_what_a_grammar_cannot_say_is_validated(schema: object, bad: str) -> None:
    found = compiled(schema)
    assert found.validated
    with pytest.raises(ServableError, match="does not match"):
        found.check(bad)


def test_keywords_that_cannot_be_kept_and_slips_of_the_pen_are_refused_with_their_path() -> None:
    refused({"properties": {"a": {"if": {}, "then": {}}}}, ".properties.a.if", "'if'")
    refused({"type": "string", "minLenght": 1}, "minLenght", "did you mean 'minLength'")
    refused({"type": "text"}, ".type", "string")
    refused({"type": "string", "format": "colour"}, ".format", "colour", "date-time")
    refused({"type": "string", "pattern": "(?=a)b"}, ".pattern", "look-around")
    refused({"type": "string", "minLength": -1}, ".minLength")
    refused({"anyOf": []}, ".anyOf")
    refused({"properties": []}, ".properties")
    refused({"type": "string", "$dynamicRef": "#x"}, "$dynamicRef")
    check({"type": "null", "x-internal": 1, "title": "t", "vendorHint": {}}, ["null"], [])


def test_what_is_too_large_is_refused_quickly() -> None:
    refused({"type": "string", "maxLength": 10**9}, "100000")
    refused({"type": "string", "pattern": "(a|b)*a(a|b){14}$", "maxLength": 100}, "states")
    refused({"allOf": [{"anyOf": [{"minimum": at}, {"maximum": at}]} for at in range(24)]}, "parts")
    deep: object = {}
    for _ in range(100):
        deep = {"items": deep}
    refused(deep, "deep")
    refused({"enum": ["x" * 300_000]}, "bytes")
    doubling = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(25)} | {"a25": {"const": 1}}
    found = compiled({"$ref": "#/$defs/a0", "$defs": doubling})
    assert matches(found, "1", TABLE) and not matches(found, "2", TABLE)
    with pytest.raises(ServableError, match="steps"):
        found.check("1")


def test_strings_can_be_bounded_by_a_limit() -> None:
    found = compiled({"type": "string"}, Compiler(Limits(longest_string=100)))
    assert matches(found, f'"{"a" * 100}"', TABLE) and not matches(found, f'"{"a" * 101}"', TABLE)


def test_a_pattern_that_runs_away_is_stopped() -> None:
    found = compiled({"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(ServableError, match=r"too long|does not match"):
        found.check('"' + "a" * 40 + 'b"')


def test_the_output_s_faults_are_the_model_s() -> None:
    found = compiled({"type": "object"})
    for text in ('{"a":', "[1]", '{"a":NaN}', "[" * 100_000):
        with pytest.raises(ServableError):
            found.check(text)
