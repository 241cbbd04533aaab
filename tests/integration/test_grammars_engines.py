"""Engines keep to our grammars: what they write is valid, and what was cut is not called whole.

In the process of the test, straight into the engine's library: only the grammar's text is in question here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.core.language import Format, Tool
from penstock.language.grammars import HERMES, Compiler

NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2}},
    "required": ["v"],
}
SCHEMAS: dict[str, Any] = {
    "person": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"], "additionalProperties": False},
    "tree": {"$ref": "#/$defs/n", "$defs": {"n": NODE}},
    "formats": {"type": "object", "properties": {"d": {"type": "string", "format": "date"}, "i": {"type": "string", "format": "ipv6"}, "u": {"type": "string", "format": "uuid"}}, "required": ["d", "i", "u"]},
    "pattern": {"type": "object", "properties": {"k": {"type": "string", "pattern": "^[A-Z]{3}-\\d+$", "maxLength": 9}, "x": {"type": "string", "pattern": "e", "minLength": 4, "maxLength": 12}}, "required": ["k", "x"]},
    "open": {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 7, "maximum": 999}}, "required": ["a"], "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "long": {"type": "object", "properties": {"t": {"type": "string", "minLength": 70, "maxLength": 3000}}, "required": ["t"]},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -0.5, "exclusiveMaximum": 10}, "minItems": 3, "maxItems": 5},
    "enum": {"enum": ["é\u2028", 'a"b', {"k": [1, 2]}, None]},
    "union": {"anyOf": [{"type": "string", "maxLength": 10}, {"type": "array", "items": {"type": "null"}, "maxItems": 300}]},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "integer"}], "items": False, "minItems": 1},
    "merged": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"a": {"minimum": 3}, "b": {"type": "string", "maxLength": 5}}}]},
    "keys": {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False, "maxProperties": 3},
}  # fmt: skip
FORMATS = {name: Format("json_schema", schema=schema) for name, schema in SCHEMAS.items()} | {
    "object": Format("json_object"),
    "regex": Format("regex", text=r"(19|20)\d\d-\d\d(-\d\d)?|é{2,70}|[^a-z\n]{3}"),
    "choice": Format("choice", choices=("yes", 'no"', "日本\n")),
    "ebnf": Format("ebnf", text='root ::= ("a"? "b"?)* "c" my_end\nmy_end ::= [^\\x00-\\x60{-\\U0010FFFF]{1,3}'),
}
PROMPT = "<|im_start|>user\nGive me JSON about a person<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.timeout(180)
def test_llama_cpp_keeps_to_every_grammar(smollm2: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(smollm2)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads, settings.warmup = 1024, 1, 1, False
    server = xllamacpp.Server(settings)
    ends = set()
    for name, wanted in FORMATS.items():
        compiled = Compiler().compile_format(wanted)
        assert compiled is not None and compiled.grammar is not None
        for temperature in (0, 1.5):
            asked = {
                "prompt": PROMPT,
                "grammar": compiled.grammar.text,
                "max_tokens": 60,
                "temperature": temperature,
                "seed": 7,
            }
            answer = server.handle_completions(asked)
            answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
            made = answer["choices"][0]
            ends.add(made["finish_reason"])
            if made["finish_reason"] == "stop":
                compiled.check(made["text"])
            else:
                assert made["finish_reason"] == "length", (name, answer)
    assert "stop" in ends
    tools = [Tool("weather", parameters=SCHEMAS["person"]), Tool("time")]
    calls = Compiler().compile_format(Format(), tools, "required", parallel=False, tool_format=HERMES)
    assert calls is not None and calls.grammar is not None
    answer = server.handle_completions(
        {"prompt": PROMPT, "grammar": calls.grammar.text, "max_tokens": 80, "temperature": 0}
    )
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    call = json.loads(answer["choices"][0]["text"].removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
    calls.check_call(call["name"], json.dumps(call["arguments"]))
