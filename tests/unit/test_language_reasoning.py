"""Reasoning is taken off the visible text, by marks or channels."""

from __future__ import annotations

import pytest

from penstock.language.harmony import HarmonyParser
from penstock.language.output import Called, OutputParser, Part, Shown, Thought
from penstock.language.reasoning import FORMS, ReasoningForm, ReasoningParser, opened, reasoning_form
from penstock.language.tokenizer import ByteTokenizer

THINK = FORMS[0]


def parse(parser: OutputParser, text: str, size: int) -> list[Part]:
    parts: list[Part] = []
    for at in range(0, len(text), size):
        parts += parser.feed(text[at : at + size])
    parts += parser.finish()
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Shown | Thought) and type(last) is type(part):
            joined[-1] = type(part)(last.text + part.text)  # type: ignore[union-attr]
        elif isinstance(part, Called) and isinstance(last, Called) and last.index == part.index:
            joined[-1] = Called(part.index, last.name, last.arguments + part.arguments)
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("form", FORMS)
def test_reasoning_and_answer_come_apart(form: ReasoningForm, size: int) -> None:
    text = f"\n{form.begin}\nhm, 1 < 2\n{form.end}\n\nYes.\n"
    assert parse(OutputParser(ReasoningParser(form)), text, size) == [Thought("hm, 1 < 2"), Shown("Yes.\n")]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_template_may_have_opened_it(size: int) -> None:
    assert opened(THINK, "<|im_start|>assistant\n<think>\n") and not opened(THINK, "<think>\n\n</think>\n\n")
    parser = OutputParser(ReasoningParser(THINK, opened=True))
    assert parse(parser, "\nhm</think>Yes", size) == [Thought("hm"), Shown("Yes")]


@pytest.mark.parametrize("size", [1, 100])
def test_reasoning_that_never_ends_is_reasoning(size: int) -> None:
    assert parse(OutputParser(ReasoningParser(THINK)), "<think>a b </thi", size) == [Thought("a b </thi")]


@pytest.mark.parametrize("size", [1, 100])
def test_marks_in_the_middle_of_an_answer_are_text(size: int) -> None:
    text = " Use <think> and </think>."
    assert parse(OutputParser(ReasoningParser(THINK)), text, size) == [Shown(text)]


def test_the_form_is_known_by_the_template_or_not_at_all() -> None:
    tokenizer = ByteTokenizer()
    assert reasoning_form("{{ content.split('</think>') }}", tokenizer) is THINK
    assert reasoning_form("{{ content }}", tokenizer) is None


@pytest.mark.parametrize("size", [1, 4, 500])
def test_channels_are_reasoning_calls_and_text(size: int) -> None:
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json"
        '<|message|>{"a": 1}<|call|><|start|>assistant<|channel|>final<|message|>Yes<|return|>'
    )
    assert parse(OutputParser(HarmonyParser()), text, size) == [Thought("hm"), Called(0, "f", '{"a": 1}'), Shown("Yes")]


def test_text_without_channels_is_text() -> None:
    assert parse(OutputParser(HarmonyParser()), "plain <|x", 1) == [Shown("plain <|x")]
