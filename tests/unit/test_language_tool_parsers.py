"""Tool calls in the forms of the usual models; what only looks like one is text."""

from __future__ import annotations

import json

import pytest

from penstock.core.language import Tool
from penstock.language import tool_parsers
from penstock.language.output import Called, OutputParser, Part, Shown
from penstock.language.tool_parsers import ToolForm, ToolParser, tool_form

TOOLS = [
    Tool("weather", "", {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}),
    Tool("now", "", {"type": "object", "properties": {}}),
]


def parse(form: ToolForm, text: str, size: int = 0) -> tuple[str, list[tuple[str, str]]]:
    """The visible text and the calls (name, arguments)."""
    parser = OutputParser(None, ToolParser(form, TOOLS))
    pieces = [text[at : at + size] for at in range(0, len(text), size)] if size else [text]
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.feed(piece)
    return gathered(parts + parser.finish())


def gathered(parts: list[Part]) -> tuple[str, list[tuple[str, str]]]:
    shown, names, arguments = "", {}, {}
    for part in parts:
        if isinstance(part, Shown):
            shown += part.text
        elif isinstance(part, Called):
            if part.name:
                assert part.index not in names
                names[part.index] = part.name
            arguments[part.index] = arguments.get(part.index, "") + part.arguments
    assert sorted(names) == list(range(len(names))) and arguments.keys() == names.keys()
    return shown, [(names[index], arguments[index]) for index in sorted(names)]


PARIS = '{"city": "Pa{r}is \\"x\\"", "days": 2}'
CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>',
    "llama": '<|python_tag|>{"name": "weather", "parameters": %s}; {"name": "now", "parameters": {}}<|eom_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": %s}, {"name": "now", "arguments": {}}]',
    "phi": '<|tool_call|>[{"name": "weather", "arguments": %s}, {"name": "now", "arguments": {}}]<|/tool_call|>',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n%s\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>%s<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    "plain": '[{"name":"weather","arguments":%s},{"name":"now","arguments":{}}]',
    "pythonic": '[weather(city="Pa{r}is \\"x\\"", days=2), now()]',
    "lfm": "<|tool_call_start|>[weather(city='Pa{r}is \"x\"', days=2), now()]<|tool_call_end|>",
    "qwen-xml": '<tool_call>\n<function=weather>\n<parameter=city>\nPa{r}is "x"\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>',
}
FORMS = {form.name: form for form in tool_parsers.FORMS}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 20])
def test_two_calls_come_out_of_each_form_however_it_is_cut(name: str, size: int) -> None:
    text = CALLS[name].replace("%s", PARIS)
    shown, calls = parse(FORMS[name], text, size)
    assert shown == ""
    assert [(call, json.loads(arguments)) for call, arguments in calls] == [("weather", json.loads(PARIS)), ("now", {})]


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("pythonic", "plain")])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_text_before_a_call_is_text(name: str, size: int) -> None:
    shown, calls = parse(FORMS[name], "Let me <look>. " + CALLS[name].replace("%s", PARIS), size)
    assert shown == "Let me <look>. " and len(calls) == 2


def test_newer_mistral_models_write_the_name_before_the_arguments() -> None:
    text = f"[TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]now[CALL_ID]abc123[ARGS]{{}}"
    for size in (0, 1, 4):
        assert parse(tool_parsers.MISTRAL, text, size) == ("", [("weather", PARIS), ("now", "{}")])


def test_deepseek_3_1_writes_arguments_without_a_fence() -> None:
    text = f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    assert parse(tool_parsers.DEEPSEEK, text, 3) == ("", [("weather", PARIS)])


def test_the_name_comes_at_once_and_arguments_as_they_come() -> None:
    parser = ToolParser(tool_parsers.HERMES, TOOLS)
    assert parser.feed('<tool_call>\n{"name": "weather", "argu') == []
    assert parser.feed('ments": {"ci') == [Called(0, "weather", '{"ci')]
    assert parser.feed('ty": "Rome"') == [Called(0, "", 'ty": "Rome"')]
    assert parser.feed("}}") == [Called(0, "", "}")]
    assert parser.feed("\n</tool_call>\n") == [] and parser.finish() == []


@pytest.mark.parametrize(
    "text",
    [
        "a <tool_call> is what one writes",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather"',
        "<tool_call>",
        "1 < 2 <tool",
        '<tool_call>[1, 2]</tool_call> and <tool_call>{"x": 1}',
        " \n plain \n",
        "",
        "\n",
    ],
)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_what_only_looks_like_a_call_is_text_to_the_last_letter(text: str, size: int) -> None:
    assert parse(tool_parsers.HERMES, text, size) == (text, [])


@pytest.mark.parametrize(
    "text", ['{"name": "Bob", "age": 3}', '{"answer": 1}', "[1, 2]", "{", '[{"name": "x"}]', "[weather]"]
)
@pytest.mark.parametrize("form", [tool_parsers.PLAIN, tool_parsers.LLAMA, tool_parsers.PYTHONIC])
def test_json_that_is_no_call_is_text(form: ToolForm, text: str) -> None:
    assert parse(form, text, 1) == (text, []) == parse(form, text)


def test_other_orders_and_arguments_as_text_are_understood() -> None:
    for call in (
        '{"arguments": {"days": 1}, "name": "weather"}',
        '{"name": "weather", "arguments": "{\\"days\\": 1}"}',
        '{"type": "function", "function": {"name": "weather", "arguments": {"days": 1}}}',
        '{"id": "x", "type": "function", "name": "weather", "parameters": {"days": 1}}',
    ):
        shown, calls = parse(tool_parsers.HERMES, f"<tool_call>{call}</tool_call>", 4)
        assert shown == "" and [(name, json.loads(text)) for name, text in calls] == [("weather", {"days": 1})]
    assert parse(tool_parsers.HERMES, '<tool_call>{"name": "now"}</tool_call>') == ("", [("now", "{}")])


def test_a_forgotten_brace_does_not_swallow_what_follows() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert parse(tool_parsers.HERMES, text, 1) == ("", [("now", "{}"), ("now", "{}")])


def test_text_after_a_call_is_text() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>\nDone.'
    shown, calls = parse(tool_parsers.HERMES, text, 1)
    assert shown.strip() == "Done." and calls == [("now", "{}")]


def test_a_call_cut_off_by_the_length_keeps_what_came() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Ro'
    assert parse(tool_parsers.HERMES, text, 2) == ("", [("weather", '{"city": "Ro')])


def test_python_is_read_and_not_run() -> None:
    text = '[weather(city=__import__("os").getcwd())]'
    assert parse(tool_parsers.PYTHONIC, text) == (text, [])


def test_many_marks_without_calls_take_little_time() -> None:
    text = "<tool_call>{" * 3000
    assert parse(tool_parsers.HERMES, text, 64) == (text, [])


@pytest.mark.parametrize(
    ("source", "architecture", "name"),
    [
        ("…<tool_call>\n{…", "qwen2", "hermes"),
        ("<tool_call>\n<function=example>", "qwen3", "qwen-xml"),
        ("[TOOL_CALLS] [", "llama", "mistral"),
        ('{{ "<|python_tag|>" }}', "llama", "llama"),
        ("<｜tool▁calls▁begin｜>", "deepseek2", "deepseek"),
        ("<|tool_call|>", "phi3", "phi"),
        ("", "llama4", "pythonic"),
        ("{% for m in messages %}", "llama", "hermes"),
    ],
)
def test_the_form_is_known_by_the_template(source: str, architecture: str, name: str) -> None:
    assert tool_form(source, architecture).name == name
