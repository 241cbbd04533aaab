"""What a model's template and tokenizer tell of it: whether it chats, how it calls tools, and how it reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.language import Tool
from penstock.language.files import ModelFiles
from penstock.language.harmony import MARKS, HarmonyParser
from penstock.language.output import OutputParser
from penstock.language.reasoning import ReasoningForm, ReasoningParser, opened, reasoning_form, shown_ids
from penstock.language.template import Template
from penstock.language.tokenizer import Tokenizer
from penstock.language.tool_parsers import PLAIN, ToolForm, ToolParser, tool_form


@dataclass(frozen=True, slots=True)
class Manner:
    """How a model writes what is not text. `own_tools`: its template takes tools; else they are told it in words.

    `shown` are ids that a detokeniser must not hide, for parsers look for their texts.
    """

    chat: bool
    own_tools: bool
    tools: ToolForm
    reasoning: ReasoningForm | None
    harmony: bool
    shown: frozenset[int]

    @property
    def reasons(self) -> bool:
        return self.harmony or self.reasoning is not None

    def parser(self, prompt: str = "", tools: Sequence[Tool] = (), forced: bool = False) -> OutputParser:
        """Takes one output apart. `prompt` tells whether it begins inside reasoning; without `tools` no calls are
        looked for; `forced`: a grammar of ours makes the calls plain JSON."""
        if self.harmony and not forced:
            return OutputParser(HarmonyParser())
        form = PLAIN if forced else self.tools
        # A grammar leaves no room for reasoning, but for what the template has opened.
        begins_inside = self.reasoning is not None and opened(self.reasoning, prompt)
        thinks = self.reasoning is not None and not (forced and not begins_inside)
        return OutputParser(
            ReasoningParser(self.reasoning, begins_inside) if self.reasoning is not None and thinks else None,
            ToolParser(form, tools) if tools else None,
        )


def manner_of(files: ModelFiles, tokenizer: Tokenizer, template: Template | None) -> Manner:
    """The manner of a model, with the template that its conversations are rendered with."""
    source = "" if template is None else template.source
    harmony = "<|channel|>" in source and "<|message|>" in source
    form = tool_form(source, files.architecture)
    reasoning = None if harmony or template is None else reasoning_form(source, tokenizer)
    marks = MARKS if harmony else (*form.marks, *(reasoning.marks if reasoning is not None else ()))
    return Manner(
        chat=template is not None,
        own_tools=template is not None and template.takes_tools,
        tools=form,
        reasoning=reasoning,
        harmony=harmony,
        shown=shown_ids(tokenizer, marks),
    )


def describe(files: ModelFiles, tokenizer: Tokenizer, template: Template | None) -> tuple[bool, bool, bool]:
    """Whether the model chats, takes tools (by its template, or told in words), and reasons."""
    manner = manner_of(files, tokenizer, template)
    return manner.chat, manner.chat, manner.reasons
