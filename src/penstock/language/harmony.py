"""The output of gpt-oss models: messages on channels, of which one is reasoning, one is shown, and some are calls.

Source: https://github.com/openai/harmony, docs/format.md. After the prompt's `<|start|>assistant` comes
`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`; a call is
`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>`.
"""

from __future__ import annotations

import re

from penstock.language.output import Called, Part, Shown, Thought, held_length

START, MESSAGE, CHANNEL = "<|start|>", "<|message|>", "<|channel|>"
MARKS = (START, MESSAGE, CHANNEL, "<|end|>", "<|constrain|>", "<|call|>", "<|return|>")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
_TO = re.compile(r"to=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser:
    """Reasoning, text and calls out of Harmony messages. Text outside of messages is shown."""

    def __init__(self) -> None:
        self._held = ""
        self._body = ""  # "", "thought", "shown", "call": the message that the text is in
        self._index = -1

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while self._in_body(parts) if self._body else self._in_header(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if not held:
            return []
        return [self._part(held)] if self._body else [Shown(held)]

    def _in_header(self, parts: list[Part]) -> bool:
        bare = self._held.lstrip()
        if not bare:
            return False
        if not bare.startswith((CHANNEL, START)):
            if CHANNEL.startswith(bare) or START.startswith(bare):
                return False
            self._body = "shown"  # no message: text like any other
            return True
        header, message, rest = self._held.partition(MESSAGE)
        if not message:
            return False
        channel = _CHANNEL.search(header)
        to = _TO.search(header)
        if to is not None:
            self._index += 1
            self._body = "call"
            parts.append(Called(self._index, to.group(1)))
        else:
            self._body = "thought" if channel is not None and channel.group(1) == "analysis" else "shown"
        self._held = rest
        return True

    def _in_body(self, parts: list[Part]) -> bool:
        ends = [(at, end) for end in _ENDS if (at := self._held.find(end)) >= 0]
        if not ends:
            kept = held_length(self._held, _ENDS)
            parts.append(self._part(self._held[: len(self._held) - kept]))
            self._held = self._held[len(self._held) - kept :]
            return False
        at, end = min(ends)
        parts.append(self._part(self._held[:at]))
        self._held = self._held[at if end == START else at + len(end) :]
        self._body = ""
        return True

    def _part(self, text: str) -> Part:
        if self._body == "call":
            return Called(self._index, arguments=text)
        return Thought(text) if self._body == "thought" else Shown(text)
