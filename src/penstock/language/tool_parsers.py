"""Tool calls out of a model's text, as it comes: the name at once, then pieces of the arguments.

Theory of operation. The text is looked through for an opening mark of the model's form (half of one is held back).
After it the beginning of a call is awaited: a JSON object with a name, or a name and then an object. Until that is
whole and the name is a tool's, nothing is given; if it turns out to be no call, the mark and all after it were text,
and are given as such. Once the name is given, the arguments are passed on as they come, up to the brace that closes
them. After a call, separators and closing marks are dropped if another call or the end follows, and given as text if
not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from penstock.core.language import Tool
from penstock.language.output import Called, Part, Shown, held_length
from penstock.language.tool_bodies import Body, JsonBody, NotACall, PythonBody, XmlBody

_BLANK = " \t\r\n"
_NAME = r"(?P<name>[A-Za-z0-9_.\-]{1,128})"


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a model writes calls. `heads` are what may stand before the arguments where the name comes first.

    `closes` may follow a call; `separators` are letters that may stand between calls. `bare`: a JSON object or list at
    the very beginning of the text is a call, without a mark. `pythonic`: calls are written as Python would.
    """

    name: str
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    heads: tuple[re.Pattern[str], ...] = ()
    separators: str = _BLANK
    bare: bool = False
    body: Literal["json", "pythonic", "xml"] = "json"
    inside: tuple[str, ...] = ()  # marks in the heads

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that a detokeniser must not hide."""
        return self.opens + self.closes + self.inside


HERMES = ToolForm("hermes", ("<tool_call>",), ("</tool_call>",))
QWEN_XML = ToolForm("qwen-xml", ("<tool_call>", "<function="), ("</tool_call>",), body="xml")
LLAMA = ToolForm("llama", ("<|python_tag|>",), ("<|eom_id|>",), separators=_BLANK + ";", bare=True)
MISTRAL = ToolForm(
    "mistral", ("[TOOL_CALLS]",), (),
    (re.compile(rf"\s*{_NAME}(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{{)"),), _BLANK + "[],",
    inside=("[ARGS]", "[CALL_ID]"),
)  # fmt: skip
PHI = ToolForm("phi", ("<|tool_call|>",), ("<|/tool_call|>",), separators=_BLANK + "[],")
DEEPSEEK = ToolForm(
    "deepseek", ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    (
        re.compile(rf"\s*(?:<｜tool▁call▁begin｜>)?function<｜tool▁sep｜>{_NAME}\s*```json\s*(?=\{{)"),  # V3, R1
        re.compile(rf"\s*(?:<｜tool▁call▁begin｜>)?{_NAME}<｜tool▁sep｜>\s*(?=\{{)"),  # V3.1
    ),
    inside=("<｜tool▁sep｜>",),
)  # fmt: skip
_KIMI_HEAD = (
    r"\s*(?:<\|tool_call_begin\|>)?\s*(?:functions\.)?(?P<name>[A-Za-z0-9_.\-]{1,128}?)(?::\d+)?"
    r"\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
)
KIMI = ToolForm(
    "kimi", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    ("<|tool_call_end|>", "<|tool_calls_section_end|>"), (re.compile(_KIMI_HEAD),),
    inside=("<|tool_call_argument_begin|>",),
)  # fmt: skip
PYTHONIC = ToolForm("pythonic", ("<|python_start|>",), ("<|python_end|>",), bare=True, body="pythonic")
LFM = ToolForm("lfm", ("<|tool_call_start|>",), ("<|tool_call_end|>",), body="pythonic")
PLAIN = ToolForm("plain", separators=_BLANK + "[],;", bare=True)  # as our own grammars force it
FORMS = (HERMES, QWEN_XML, LLAMA, MISTRAL, PHI, DEEPSEEK, KIMI, PYTHONIC, LFM, PLAIN)


def tool_form(source: str, architecture: str = "") -> ToolForm:
    """The form in which a model calls tools, by its template's text; Hermes' where it tells none, for then the tools
    are told in Hermes' words. Harmony (gpt-oss) is `harmony.HarmonyParser`'s."""
    if "<function=" in source:
        return QWEN_XML
    for form in (LFM, HERMES, MISTRAL, DEEPSEEK, KIMI, PHI):
        if form.opens[0] in source:
            return form
    if "<｜tool▁call▁begin｜>" in source:
        return DEEPSEEK
    if architecture == "llama4" or "<|python_start|>" in source:
        return PYTHONIC
    if "<|python_tag|>" in source or ("ipython" in source and '"parameters"' in source):
        return LLAMA
    return HERMES


class ToolParser:
    """Finds calls of `tools` in a text. Every letter comes out: in a call, as syntax of one, or as text."""

    def __init__(self, form: ToolForm, tools: Iterable[Tool]) -> None:
        self._form = form
        self._tools = {tool.name: tool for tool in tools}
        self._held = ""
        self._raw = ""  # text after the mark of what may become a call
        self._mark = ""
        self._state: Literal["start", "text", "call", "after"] = "start"
        self._body: Body = JsonBody(form.heads, form.closes, form.separators, self._tools)
        self._index = -1
        self._first_letters = {mark[0] for mark in form.opens}

    def feed(self, text: str) -> list[Part]:
        if self._state == "text" and not self._held and not any(letter in text for letter in self._first_letters):
            return [Shown(text)]  # by far the commonest
        self._held += text
        parts: list[Part] = []
        self._go(parts, False)
        return parts

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        self._go(parts, True)
        if self._state == "after":
            self._held = "" if not self._held.strip(self._form.separators) else self._held
        if self._held:
            parts.append(Shown(self._held))
            self._held = ""
        return parts

    def _go(self, parts: list[Part], last: bool) -> None:
        steps = {"start": self._at_start, "text": self._in_text, "call": self._in_call, "after": self._after_call}
        while steps[self._state](parts, last):
            pass

    def _at_start(self, parts: list[Part], last: bool) -> bool:
        """Nothing but blank space has come: a bare call may begin, or a mark, and then the space is nobody's."""
        bare = self._held.lstrip(_BLANK)
        if not bare:
            return False
        if self._form.bare and bare[0] in ("[" if self._form.body == "pythonic" else "{["):
            self._begin("", self._held)
            return True
        for mark in self._form.opens:
            if bare.startswith(mark):
                self._begin(mark, bare[len(mark) :])
                return True
        if not last and any(mark.startswith(bare) for mark in self._form.opens):
            return False
        self._state = "text"
        return True

    def _in_text(self, parts: list[Part], last: bool) -> bool:
        found = [(at, -len(mark), mark) for mark in self._form.opens if (at := self._held.find(mark)) >= 0]
        if found:
            at, _, mark = min(found)
            parts.append(Shown(self._held[:at]))
            self._begin(mark, self._held[at + len(mark) :])
            return True
        kept = 0 if last else held_length(self._held, self._form.opens)
        parts.append(Shown(self._held[: len(self._held) - kept]))
        self._held = self._held[len(self._held) - kept :]
        return False

    def _begin(self, mark: str, rest: str) -> None:
        form = self._form
        self._state, self._mark, self._raw, self._held = "call", mark, "", rest
        if form.body == "xml":
            self._body = XmlBody(mark == "<function=", self._tools)
        elif form.body == "pythonic":
            self._body = PythonBody(self._tools)
        else:
            self._body = JsonBody(form.heads, form.closes, form.separators, self._tools)

    def _in_call(self, parts: list[Part], last: bool) -> bool:
        text, self._held = self._held, ""
        try:
            if not self._body.committed:
                self._raw += text
            for name, arguments in self._body.feed(text, last):
                self._index += bool(name)
                parts.append(Called(self._index, name, arguments))
        except NotACall:  # its mark was text, and what comes after is looked through anew
            parts.append(Shown(self._mark))
            self._held, self._state = self._raw, "text"
            return True
        if self._body.rest is None:
            return False
        self._held, self._state = self._body.rest, "after"
        return True

    def _after_call(self, parts: list[Part], last: bool) -> bool:
        form = self._form
        bare = self._held.lstrip(form.separators)
        if not bare:
            return False
        for mark in form.closes:
            if bare.startswith(mark):
                self._held = bare[len(mark) :]
                return True
        for mark in form.opens:
            if bare.startswith(mark):
                self._begin(mark, bare[len(mark) :])
                return True
        if bare[0] == "{" and form.body == "json" and form not in (DEEPSEEK, KIMI):
            self._begin("", bare)
            return True
        if not last and any(mark.startswith(bare) for mark in form.opens + form.closes):
            return False
        self._state = "text"
        return True
