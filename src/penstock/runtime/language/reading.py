"""How a model's output is read: where it thinks, how it calls tools, and what its template is told of that."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from penstock.core.errors import InvalidInput
from penstock.core.language import Ask, Event, Reasoning, Text, Tool, ToolCallPart
from penstock.language.harmony import MARKS, HarmonyParser
from penstock.language.output import Called, OutputParser, Part, Thought
from penstock.language.reasoning import ReasoningForm, ReasoningParser, opened, reasoning_form, shown_ids
from penstock.language.template import Template
from penstock.language.tokenizer import Tokenizer
from penstock.language.tool_parsers import PLAIN, ToolForm, ToolParser, tool_form

# How templates call the switch of reasoning. Source: those of Qwen3, GLM-4.5 (enable_thinking); Granite, DeepSeek-V3.1.
_SWITCHES = ("enable_thinking", "thinking")
_EFFORT = "reasoning_effort"  # gpt-oss


@dataclass(frozen=True, slots=True)
class Forms:
    """What a template says about its model's output."""

    reasoning: ReasoningForm | None
    tools: ToolForm
    harmony: bool
    arguments: frozenset[str]  # that the template takes

    @property
    def reasons(self) -> bool:
        return self.harmony or self.reasoning is not None


def forms(template: Template, tokenizer: Tokenizer, architecture: str) -> Forms:
    """What `template` says."""
    source = template.source
    harmony = "<|channel|>" in source and "<|message|>" in source
    reasoning = None if harmony else reasoning_form(source, tokenizer)
    return Forms(reasoning, tool_form(source, architecture), harmony, template.arguments)


def arguments(ask: Ask, found: Forms) -> Mapping[str, object]:
    """The template's arguments, with what `ask.reasoning` means to it.

    Raises: InvalidInput when this model's reasoning cannot be set so.
    """
    wished = ask.reasoning
    if not wished:
        return ask.template_arguments
    own: dict[str, object] = {switch: wished != "none" for switch in _SWITCHES if switch in found.arguments}
    if _EFFORT in found.arguments and wished != "none":
        own[_EFFORT] = wished
    if not own and (wished != "none" or found.reasons):
        name = ask.names.get("reasoning", "reasoning")
        does = "reasons as it likes" if found.reasons else "does not reason"
        raise InvalidInput(
            f"{name} = {wished}: this model {does}; leave {name} out", parameter=name, problem="unsupported_value"
        )
    return {**own, **ask.template_arguments}


Forced = Literal["", "format", "calls"]  # what a grammar holds the output to


class Reader:
    """Reads one choice. `called` once it has read a tool call; `calls` are their names and arguments so far.

    `forced`: the output is held to calls, so what is left of one that was cut off at its beginning is no text.
    """

    def __init__(self, choice: int, parser: OutputParser, parallel: bool, forced: bool = False) -> None:
        self.calls: list[list[str]] = []
        self._choice = choice
        self._parser = parser
        self._parallel = parallel
        self._forced = forced

    @property
    def called(self) -> bool:
        return bool(self.calls)

    @property
    def complete(self) -> bool:
        """Whether the last call's arguments are whole."""
        try:
            json.loads(self.calls[-1][1])
        except ValueError:
            return False
        return True

    def feed(self, text: str) -> list[Event]:
        return self._events(self._parser.feed(text)) if text else []

    def finish(self) -> list[Event]:
        return self._events(self._parser.finish())

    def _events(self, parts: Sequence[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Called):
                self._call(part, events)
            elif isinstance(part, Thought):
                events.append(Reasoning(self._choice, part.text))
            elif not self._forced:
                events.append(Text(self._choice, part.text))
        return events

    def _call(self, part: Called, events: list[Event]) -> None:
        if part.index and not self._parallel:
            return  # one call was asked for
        identity = ""
        while len(self.calls) <= part.index:
            self.calls.append(["", ""])
            identity = f"call_{uuid.uuid4().hex[:24]}"
        call = self.calls[part.index]
        call[0] += part.name
        call[1] += part.arguments
        events.append(ToolCallPart(self._choice, part.index, identity, part.name, part.arguments))


def reader(
    choice: int, ask: Ask, found: Forms | None, tools: Sequence[Tool], prompt: str, forced: Forced
) -> Reader | None:
    """What reads a choice; None when all of it is text."""
    parallel = ask.parallel_tool_calls
    if forced == "calls":
        return Reader(choice, OutputParser(None, ToolParser(PLAIN, tools)), parallel, forced=True)
    if found is None or forced == "format":
        return None
    if found.harmony:
        return Reader(choice, OutputParser(HarmonyParser()), parallel)
    thinks = found.reasoning
    thoughts = None if thinks is None else ReasoningParser(thinks, opened(thinks, prompt))
    calls = ToolParser(found.tools, tools) if tools else None
    return None if thoughts is None and calls is None else Reader(choice, OutputParser(thoughts, calls), parallel)


def marks(found: Forms | None, tokenizer: Tokenizer, tools: bool, forced: Forced) -> frozenset[int]:
    """Control tokens that the reader looks for, and that are not hidden from it therefore."""
    if found is None or forced:
        return frozenset()
    if found.harmony:
        return shown_ids(tokenizer, MARKS)
    texts = found.reasoning.marks if found.reasoning is not None else ()
    return shown_ids(tokenizer, (*texts, *(found.tools.marks if tools else ())))
