"""However the output is cut, the same parts come out; and what is no call comes out whole."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from penstock.core.language import Tool
from penstock.language import tool_parsers
from penstock.language.harmony import HarmonyParser
from penstock.language.output import Called, OutputParser, Parser, Part, Shown, Thought
from penstock.language.reasoning import FORMS, ReasoningForm, ReasoningParser
from penstock.language.tool_parsers import ToolForm, ToolParser

TOOLS = [Tool("f", "", {"type": "object", "properties": {"a": {"type": "string"}}})]
PIECES = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", '{"name": "f", "arguments": {"a": "}"}}', '{"name": "g"}', "{", "}", "[", "]",
    '{"name":"f","arguments":', '{"a":"\\"{"}', "f(a='x')", "[f(a=1)]", "<function=f>", "<parameter=a>", "</parameter>", "</function>",
    "<think>", "</think>", "\n", " ", "text", "<", '"', "\\", ",", ";", "<|python_tag|>", "<tool", "日",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
cuts = st.lists(st.integers(1, 12), max_size=30)


def run(parser: Parser, text: str, cuts: list[int]) -> list[Part]:
    parts: list[Part] = []
    at = 0
    for size in cuts:
        parts += parser.feed(text[at : at + size])
        at += size
    parts += parser.feed(text[at:])
    return parts + parser.finish()


def told(parts: list[Part]) -> tuple[str, str, list[tuple[str, str]]]:
    shown = "".join(part.text for part in parts if isinstance(part, Shown))
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    calls: dict[int, tuple[str, str]] = {}
    for part in parts:
        if isinstance(part, Called):
            name, arguments = calls.get(part.index, ("", ""))
            calls[part.index] = (name + part.name, arguments + part.arguments)
    return shown, thought, [calls[index] for index in sorted(calls)]


@given(st.sampled_from(tool_parsers.FORMS), texts, cuts)
def test_calls_do_not_depend_on_the_cut(form: ToolForm, text: str, cuts: list[int]) -> None:
    whole = told(run(OutputParser(None, ToolParser(form, TOOLS)), text, []))
    assert told(run(OutputParser(None, ToolParser(form, TOOLS)), text, cuts)) == whole


@given(st.sampled_from(tool_parsers.FORMS), texts, cuts)
def test_without_calls_no_letter_is_lost(form: ToolForm, text: str, cuts: list[int]) -> None:
    shown, _, calls = told(run(ToolParser(form, TOOLS), text, cuts))
    if not calls:
        assert shown == text


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.booleans(), max_size=3), cuts)
def test_streamed_arguments_join_to_what_was_written(arguments: dict[str, object], cuts: list[int]) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    text = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    assert told(run(ToolParser(tool_parsers.HERMES, TOOLS), text, cuts)) == ("", "", [("f", written)])


@given(st.sampled_from(FORMS), st.booleans(), texts, cuts)
def test_reasoning_does_not_depend_on_the_cut(form: ReasoningForm, opened: bool, text: str, cuts: list[int]) -> None:
    text = text.replace("<think>", form.begin).replace("</think>", form.end)
    whole = told(run(ReasoningParser(form, opened), text, []))
    assert told(run(ReasoningParser(form, opened), text, cuts)) == whole
    if form.begin not in text and not opened:
        assert whole[0] == text


HARMONY = [
    "<|channel|>",
    "analysis",
    "final",
    "commentary to=functions.f",
    "<|message|>",
    "<|end|>",
    "<|start|>assistant",
    "{}",
    "x",
    "<|",
    " ",
]


@given(st.lists(st.sampled_from(HARMONY), max_size=12).map("".join), cuts)
def test_channels_do_not_depend_on_the_cut(text: str, cuts: list[int]) -> None:
    assert told(run(HarmonyParser(), text, cuts)) == told(run(HarmonyParser(), text, []))
