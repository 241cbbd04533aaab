"""Where a model thinks before it answers: the marks that its template or its vocabulary knows, and taking it apart.

A template may open the thinking itself (DeepSeek-R1's prompt ends in "<think>"); then the output begins inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.language.output import Part, Shown, Thought, held_length
from penstock.language.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """The marks around reasoning. `anywhere`: it may come again after visible text; else only at the beginning."""

    begin: str
    end: str
    anywhere: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.begin, self.end)


# Source: the chat templates of Qwen3, DeepSeek-R1, QwQ, GLM-4.5 (think); Seed-OSS; Magistral; Gemma 4; Granite 3.2 (no
# tokens of its own); EXAONE 4 (think); Kimi-VL.
FORMS = (
    ReasoningForm("<think>", "</think>"),
    ReasoningForm("<seed:think>", "</seed:think>"),
    ReasoningForm("[THINK]", "[/THINK]"),
    ReasoningForm("<|channel>thought", "<channel|>", anywhere=True),
    ReasoningForm("◁think▷", "◁/think▷"),
    ReasoningForm("<thought>", "</thought>"),
)


def reasoning_form(source: str, tokenizer: Tokenizer) -> ReasoningForm | None:
    """The form in which a model reasons: by its template's text, else by tokens made for it; None when it does not.

    Harmony (gpt-oss), whose channels are more than reasoning, is `harmony.HarmonyParser`'s.
    """
    for form in FORMS:
        if form.end in source:
            return form
    for form in FORMS:
        if tokenizer.id_of(form.begin) is not None and tokenizer.id_of(form.end) is not None:
            return form
    return None


def opened(form: ReasoningForm, prompt: str) -> bool:
    """Whether the prompt ends inside reasoning, which the output goes on with."""
    return prompt.rstrip().endswith(form.begin)


class ReasoningParser:
    """Takes reasoning off the text. Blank space around it is nobody's; visible text is not changed otherwise."""

    def __init__(self, form: ReasoningForm, opened: bool = False) -> None:
        self._form = form
        self._thinking = opened
        self._start = not opened  # nothing but blank space has come yet
        self._trim = opened  # what comes next is blank space after a mark
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether the text is inside reasoning."""
        return self._thinking

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if not held:
            return []
        return [Thought(held.rstrip())] if self._thinking else [Shown(held)]

    def _step(self, parts: list[Part]) -> bool:
        """Moves on by one mark, if there is a whole one."""
        if self._trim:
            self._held = self._held.lstrip()
            if not self._held:
                return False
            self._trim = False
        return self._inside(parts) if self._thinking else self._outside(parts)

    def _inside(self, parts: list[Part]) -> bool:
        thought, end, rest = self._held.partition(self._form.end)
        if end:
            parts.append(Thought(thought.rstrip()))
            self._held, self._thinking, self._trim, self._start = rest, False, True, False
            return True
        whole = thought[: len(thought) - held_length(thought, (self._form.end,))].rstrip()
        parts.append(Thought(whole))
        self._held = thought[len(whole) :]
        return False

    def _outside(self, parts: list[Part]) -> bool:
        if self._start:
            bare = self._held.lstrip()
            if bare.startswith(self._form.begin):
                self._held = bare[len(self._form.begin) :]
                self._thinking, self._trim = True, True
                return True
            if self._form.begin.startswith(bare):
                return False  # nothing yet, or half a mark
            self._start = False
        if not self._form.anywhere:
            parts.append(Shown(self._held))
            self._held = ""
            return False
        shown, begin, rest = self._held.partition(self._form.begin)
        if begin:
            parts.append(Shown(shown))
            self._held, self._thinking, self._trim = rest, True, True
            return True
        kept = held_length(shown, (self._form.begin,))
        parts.append(Shown(shown[: len(shown) - kept]))
        self._held = shown[len(shown) - kept :]
        return False


def shown_ids(tokenizer: Tokenizer, marks: Sequence[str]) -> frozenset[int]:
    """The ids of marks that are tokens: a detokeniser must not hide them from the parser that looks for them."""
    return frozenset(token for mark in marks if (token := tokenizer.id_of(mark)) is not None)
